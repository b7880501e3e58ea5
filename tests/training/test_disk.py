"""The place that a fault of the disk is blamed on is the one that failed."""

import errno
import os
import shutil
import tempfile
from collections import namedtuple

import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.disk import disk_faults

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A workdir, with a temporary folder beside it; both have room."""
    for name in ("temporary", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, 0, 1 << 30))
    return tmp_path / "run"


def blamed(workdir, error: Exception) -> str:
    with pytest.raises(UserError) as raised, disk_faults(workdir):
        raise error
    return str(raised.value)


def fault(number: int, path=None) -> OSError:
    return OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


def test_a_full_temporary_folder_is_not_the_workdir(workdir, monkeypatch):
    temporary = workdir.parent / "temporary"
    expected = f"the temporary folder {temporary} cannot be written (No space left on device); make room there"
    by_name = fault(errno.ENOSPC, temporary / "mask_rcnn_jax-1" / "records")
    assert blamed(workdir, by_name).startswith(expected)
    assert blamed(workdir, RuntimeError(f"in a worker: {by_name}")).startswith(expected)
    # Writing to an open file names none.
    full = lambda path: Usage(1 << 30, 1 << 30, 0 if str(path) == str(temporary) else 1 << 30)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", full)
    assert blamed(workdir, fault(errno.ENOSPC)).startswith(expected)


def test_a_full_shared_memory_is_named(workdir):
    message = blamed(workdir, fault(errno.ENOSPC, "/dev/shm/of_a_worker"))
    assert message.startswith("the shared memory /dev/shm cannot be written (No space left on device)")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_the_workdir_is_blamed_for_its_own_files_and_where_nothing_else_is_known(workdir, number):
    reason = os.strerror(number)
    expected = f"{workdir} can no longer be written ({reason}); make room or make it writable, and the same command"
    errors = fault(number, workdir / "metrics.jsonl"), fault(number), ValueError(f'{reason}: "{workdir}/checkpoints/1"')
    for error in errors:
        assert blamed(workdir, error).startswith(expected)


def test_a_file_elsewhere_is_named_itself(workdir):
    image = workdir.parent / "temporary" / "image.png"
    assert blamed(workdir, fault(errno.EIO, image)).startswith(f"{image} cannot be read or written (Input/output error")


def test_other_errors_pass(workdir):
    for error in (KeyError("x"), ValueError("no space"), FileNotFoundError(errno.ENOENT, "gone")):
        with pytest.raises(type(error)), disk_faults(workdir):
            raise error
