"""What the header of an image file says, without decoding its pixels."""

import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import TypeVar

from PIL import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

UNREADABLE = (Image.UnidentifiedImageError, OSError, SyntaxError, ValueError)  # what Pillow raises for broken files

_EXIF_ORIENTATION = 0x0112

T = TypeVar("T")

_PAUSES = (0.1, 0.3, 1.0)  # seconds between attempts to read
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # no attempt mends these


def with_retries(read: Callable[[], T]) -> T:
    """What `read` returns, which is called again after a pause where the disk fails, as one on a network may.

    The last failure is raised. A file that is not there or is broken is not read again: Pillow's own errors have no
    number of the system's.
    """
    for pause in _PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno is None or isinstance(error, _LASTING):
                raise
        time.sleep(pause)
    return read()


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation displays the image a quarter-turn away from how it is stored."""
    # Asking a PNG for EXIF that precedes no pixels would decode it.
    has_exif = image.format != "PNG" or "exif" in image.info
    return has_exif and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as displayed."""
    width, height = image.size
    return (width, height) if is_turned(image) else (height, width)


def list_images(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of `folder` and the folders in it with one of the `suffixes`, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
