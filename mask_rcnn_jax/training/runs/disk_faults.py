"""Faults of the disk while a run writes, and which disk it is that fails."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mask_rcnn_jax.disk.places import UNFINISHED
from mask_rcnn_jax.errors import ADVICE, AWAY, FULL, LIMITS, UserError, failed
from mask_rcnn_jax.inference.stored import disk_error

_ROOM = 1 << 20  # bytes; a file system with less is full
_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def disk_faults(workdir: Path, then: str = "the same command goes on from the last checkpoint") -> Iterator[None]:
    """Says of a disk that is full, fails or has become read-only that it is, and which one, as a `UserError`.

    `then` is what can be done once that is mended.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # the last two are tensorstore's, whose text has the reason
        number = _number(error)
        if number is None or (number in AWAY and not _is_of_a_file(error, workdir)):
            raise
        raise UserError(f"{_fault(error, number, workdir)}, and {then}") from error


def _number(error: Exception) -> int | None:
    """The system's number of a fault of a disk: the error's own, or the one that its text quotes or describes."""
    if (fault := disk_error(error)) and fault.errno is not None:
        number = fault.errno
    elif quoted := re.search(r"\[Errno (\d+)\]", str(error)):  # by a worker
        number = int(quoted[1])
    else:
        described = [number for number in ADVICE if os.strerror(number) in str(error)]
        # Without a reason, Orbax does not find what it has just written: the disk does not say that it is there.
        unknown = errno.EIO if UNFINISHED in str(error) else None
        # The reason of one may begin with that of another.
        number = max(described, key=lambda number: len(os.strerror(number)), default=unknown)
    return number if number in ADVICE else None


def _is_of_a_file(error: Exception, workdir: Path) -> bool:
    """Tell whether the error names a file, or the workdir is found to fail as well; a socket's does not."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return f"{os.path.abspath(workdir)}/" in str(error) or _room(workdir) is None


def _fault(error: Exception, number: int, workdir: Path) -> str:
    """The place that fails, why, and what to do there."""
    reason, temporary = os.strerror(number), Path(tempfile.gettempdir())
    place = _place(error, number in FULL, workdir, temporary)
    if number in LIMITS:
        return failed(number, place)
    if place == workdir:
        return f"{workdir} can no longer be written ({reason}); {ADVICE[number]}"
    if place == temporary:
        return f"the temporary folder {place} cannot be written ({reason}); make room there, or name another in TMPDIR"
    if place == _SHARED_MEMORY:
        return f"the shared memory {place} cannot be written ({reason}); make room there, or give it more"
    return failed(number, place)


def _place(error: Exception, full: bool, workdir: Path, temporary: Path) -> Path:
    """The file that the error names, or of the places a run writes to the one it lies in or that has no room."""
    places = (workdir, temporary, _SHARED_MEMORY) if full else (workdir,)
    if isinstance(error, OSError) and error.filename is not None:
        file = Path(os.path.abspath(os.fsdecode(error.filename)))
        return next((place for place in places if file.is_relative_to(os.path.abspath(place))), file)
    # Errors that come from another process or from tensorstore have the file in their text only.
    if named := next((place for place in places if f"{os.path.abspath(place)}/" in str(error)), None):
        return named
    return next((place for place in places if full and _is_full(place)), workdir)


def _is_full(place: Path) -> bool:
    room = _room(place)
    return room is not None and room < _ROOM


def _room(place: Path) -> int | None:
    """The bytes that are free, None where the place fails."""
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None
