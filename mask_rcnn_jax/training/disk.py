"""Faults of the disk while a run writes, and which disk it is that fails."""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mask_rcnn_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_DISK = (*_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
_ROOM = 1 << 20  # bytes; a file system with less is full
_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def disk_faults(workdir: Path) -> Iterator[None]:
    """Says of a disk that is full, fails or has become read-only that it is, and which one, as a `UserError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # the last two are tensorstore's, whose text has the reason
        number = next((number for number in _OF_DISK if os.strerror(number) in str(error)), None)
        if number is None:
            raise
        # What else was to be written fails as well, and is logged when Python ends.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise UserError(
            f"{_fault(error, number, workdir)}, and the same command goes on from the last checkpoint"
        ) from error


def _fault(error: Exception, number: int, workdir: Path) -> str:
    """The place that fails, why, and what to do there."""
    reason, temporary = os.strerror(number), Path(tempfile.gettempdir())
    place = _place(error, number in _FULL, workdir, temporary)
    if place == workdir:
        return f"{workdir} can no longer be written ({reason}); make room or make it writable"
    if place == temporary:
        return f"the temporary folder {place} cannot be written ({reason}); make room there, or name another in TMPDIR"
    if place == _SHARED_MEMORY:
        return f"the shared memory {place} cannot be written ({reason}); make room there, or give it more"
    return f"{place} cannot be read or written ({reason}); mend that"


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
    try:
        return shutil.disk_usage(place).free < _ROOM
    except OSError:
        return False
