"""A disk that fails for a while, as one on a network may: reading is tried again, and then the policy decides."""

import errno
import io
import time

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.data.augment.transforms import open_image
from mask_rcnn_jax.errors import UserError


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, none of which takes time."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "png")
    return file.getvalue()


class FailingDisk:
    """Opens `content`; the first `failures` times opening fails, or with `reading` the file after its first bytes."""

    def __init__(self, content: bytes, failures: int, *, reading: bool = False, error: int = errno.EIO):
        self.content, self.failures, self.reading, self.error, self.opened = content, failures, reading, error, 0

    def __call__(self) -> io.BytesIO:
        self.opened += 1
        if self.opened > self.failures:
            return io.BytesIO(self.content)
        if not self.reading:
            raise OSError(self.error, "the disk is away")
        return BreakingOff(self.content, self.error)


class BreakingOff(io.BytesIO):
    def __init__(self, content: bytes, error: int):
        super().__init__(content)
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 60:
            raise OSError(self.error, "the disk is away")
        return super().read(size)


@pytest.mark.parametrize("reading", [False, True], ids=["opening", "reading"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_twice_is_read_the_third_time(pauses, reading, error):
    disk = FailingDisk(picture(), 2, reading=reading, error=error)
    assert open_image("image.png", opener=disk).tobytes() == Image.open(io.BytesIO(disk.content)).tobytes()
    assert disk.opened == 3
    assert pauses == sorted(pauses)
    assert len(pauses) == 2
    assert 0 < sum(pauses) < 5


def test_a_disk_that_stays_away_is_given_up(pauses):
    disk = FailingDisk(picture(), 10**9)
    with pytest.raises(UserError, match=r"image\.png cannot be read .*the disk is away"):
        open_image("image.png", opener=disk)
    assert 3 <= disk.opened <= 10
    assert len(pauses) == disk.opened - 1


def test_what_no_waiting_mends_is_not_waited_for(pauses, tmp_path):
    broken = FailingDisk(picture()[:-40], 0)
    with pytest.raises(UserError, match="cannot be read"):
        open_image("image.png", opener=broken)
    assert broken.opened == 1
    with pytest.raises(UserError, match="does not exist"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="cannot be read"):
        open_image("image.png", opener=FailingDisk(b"", 9, error=errno.EACCES))
    assert pauses == []
