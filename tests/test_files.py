"""What has a name: a file, a folder, nothing, or a disk that does not say."""

import errno
import os
from typing import NoReturn

import pytest

from mask_rcnn_jax.disk.files import exists, is_file, is_folder, is_taken
from mask_rcnn_jax.media.image_files import list_images


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_does_not_say_is_not_taken_for_no(tmp_path, monkeypatch, number) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.png").touch()
    reason = os.strerror(number)
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", fails)
        for there in (is_file, is_folder, exists, is_taken):
            with pytest.raises(OSError, match=reason):
                there(tmp_path / "a.png")
        with pytest.raises(OSError, match=reason):
            list_images(tmp_path)
    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(OSError, match=reason):
        list_images(tmp_path)


def test_names_of_nothing(tmp_path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("b", "a/b", "loop", "x" * 300, "a\0b"):
        assert not is_file(tmp_path / name)
        assert not is_folder(tmp_path / name)
        assert not exists(tmp_path / name)
        assert is_taken(tmp_path / name) == (name == "loop")
    assert is_file(tmp_path / "a")
    assert not is_folder(tmp_path / "a")
    assert is_folder(tmp_path)
    assert not is_file(tmp_path)
    assert exists(tmp_path / "a")
    assert exists(tmp_path)
