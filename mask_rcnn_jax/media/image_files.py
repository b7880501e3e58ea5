"""The one door through which the package opens images, and what their headers say without decoding a pixel.

Files are not trusted: only the formats named here are tried, nothing is asked of a file that is longer than the file,
and whatever Pillow raises for a broken one becomes one of `UNREADABLE`.
"""

import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageFile, ImageOps, features

from mask_rcnn_jax.disk.files import is_file, open_file
from mask_rcnn_jax.errors import UserError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# Pillow reads some thirty formats more, and runs Ghostscript for one. "JPEG" includes MPO, "PPM" includes PGM and PBM.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
FORMATS += ("AVIF",) if "avif" in features.modules else ()

MAX_PIXELS = 400_000_000  # of an image that is decoded, unless a setting says another number
UNREADABLE = (Image.UnidentifiedImageError, OSError, SyntaxError, ValueError)  # what broken files raise here

# What Pillow's readers raise besides for files that are broken.
_BROKEN = (struct.error, zlib.error, ArithmeticError, EOFError, LookupError, TypeError, RuntimeError)

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height

T = TypeVar("T")

_PAUSES = (0.1, 0.3, 1.0)  # seconds between attempts to read
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # no attempt mends these


def with_retries(read: Callable[[], T]) -> T:
    """Call `read`, again after a pause where the disk fails, as one on a network may, and return its result.

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


@contextmanager
def opened_image(source: str | Path | bytes | io.BufferedIOBase) -> Iterator[ImageFile.ImageFile]:
    """Open an image, of which only the header is read. Files are closed at the end.

    Raises OSError where the file cannot be read or a path names no regular one, such as a pipe, and one of `UNREADABLE`
    where it is no image of `FORMATS`.
    """
    with _file(source) as file:
        clamped: Any = _Clamped(file)
        with pillow_errors():
            try:
                image = _identified(clamped)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning):
                with _Limit.lifted():
                    image = _identified(clamped)
        with image:
            yield image


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turn whatever Pillow raises for a broken file in this block into one of `UNREADABLE`."""
    try:
        yield
    except UNREADABLE:
        raise
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def check_pixels(name: str | Path, image: Image.Image, max_pixels: int) -> None:
    """Raises `UserError` where the header asks for more than `max_pixels`."""
    if image.width * image.height > max_pixels:
        raise UserError(
            f"Image {name} is {image.width} x {image.height} by its header, more than data.max_pixels {max_pixels}"
            " allows to decode; replace the file, or raise the limit if you trust it."
        )


def decode_upright(name: str | Path, image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Decode an opened image in place and turn it as its orientation says.

    Raises `UserError` naming `name` for more than `max_pixels`, before decoding, and one of `UNREADABLE`.
    """
    check_pixels(name, image, max_pixels)
    with pillow_errors(), _Limit.lifted() if _Limit.is_below(image.width * image.height) else nullcontext():
        ImageOps.exif_transpose(image, in_place=True)


def is_turned(image: ImageFile.ImageFile) -> bool:
    """Return whether an image that is not decoded is displayed a quarter-turn away from how it is stored."""
    if image.format != "PNG":
        with pillow_errors():
            return image.getexif().get(_EXIF_ORIENTATION, 1) in _TURNED
    # PngImageFile's `getexif` decodes the pixels, since EXIF or XMP may follow them.
    described = io.BytesIO(_without_pixels(image))
    with pillow_errors(), _identified(described) as header:
        return Image.Image.getexif(header).get(_EXIF_ORIENTATION, 1) in _TURNED


def displayed_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return the (height, width) that decoding an opened image will give."""
    # Pillow exchanges the sides of a TIFF by its tag when it opens it, but not by its XMP.
    has_tag = image.format == "TIFF" and _EXIF_ORIENTATION in getattr(image, "tag_v2", {})
    width, height = image.size
    return (width, height) if is_turned(image) and not has_tag else (height, width)


def count_frames(image: ImageFile.ImageFile) -> int:
    """Count the frames of an opened animation or stack; 1 for any other image."""
    with pillow_errors():
        # Cameras append previews to a JPEG (MPO), which are no frames.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def list_images(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of `folder` and the folders in it with one of the `suffixes`, sorted; hidden ones are left out.

    Raises OSError where a folder cannot be read.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes and is_file(path)]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _file(source: str | Path | bytes | io.BufferedIOBase) -> io.BufferedIOBase:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if isinstance(file, str | Path):
        file = open_file(file)
    if file.seekable():
        return file
    with file:  # a pipe
        return io.BytesIO(file.read())


class _Clamped:
    """A file that is never asked for more bytes than it holds: Python would reserve the memory for them at once."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._length = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(self._length - self._file.tell(), 0))
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Limit:
    """Pillow's own limit, which is the whole process's: it is lifted only while an image beyond it is read."""

    _lock = threading.RLock()
    _lifted: int | None = None  # what it was, and will be, while it is lifted

    @classmethod
    def is_below(cls, pixels: int) -> bool:
        limit = Image.MAX_IMAGE_PIXELS or cls._lifted  # another thread may have lifted it
        return limit is not None and limit < pixels

    @classmethod
    @contextmanager
    def lifted(cls) -> Iterator[None]:
        with cls._lock:
            limit = cls._lifted = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _identified(file: Any) -> ImageFile.ImageFile:
    return Image.open(file, formats=FORMATS)


# --- What a PNG says besides its pixels -------------------------------------------------------------------------------

_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_ONE_PIXEL = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)  # IHDR
_DESCRIBING = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # XMP is a text, and EXIF may be one
_TAIL = 1 << 16  # bytes at the end of a file in which its last pixels are looked for


def _without_pixels(image: ImageFile.ImageFile) -> bytes:
    """A PNG of one pixel with the EXIF and the texts of that which `image` is read from, after the pixels as well."""
    file: Any = image.fp
    place, chunks = file.tell(), [(b"IHDR", _ONE_PIXEL)]
    try:
        chunks += _describing(file, getattr(image, "is_animated", False))
    finally:
        file.seek(place)
    framed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"".join([_SIGNATURE, *framed, _END])


def _describing(file: Any, is_animated: bool) -> Iterator[tuple[bytes, bytes]]:
    """Chunks (kind, data) that Pillow reads by the time that it has decoded the first frame."""
    file.seek(len(_SIGNATURE))
    after_pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND" or (kind == b"fcTL" and is_animated and after_pixels):
            return
        if kind in _DESCRIBING:
            data = file.read(length)
            if len(data) < length:
                return
            yield kind, data
            file.seek(4, io.SEEK_CUR)
            continue
        file.seek(length + 4, io.SEEK_CUR)
        if kind == b"IDAT" and not after_pixels:
            after_pixels = True
            # Pixels often lie in chunks of 8 KB: to walk along them would be to read the file.
            if not is_animated and (last := _last_pixels(file)) > file.tell():
                file.seek(last)


def _last_pixels(file: Any) -> int:
    """The place of the last chunk of pixels, 0 where it does not begin near the end. Leaves the file where it is."""
    place = file.tell()
    start = max(file.seek(0, io.SEEK_END) - _TAIL, 0)
    file.seek(start)
    tail = file.read(_TAIL)
    file.seek(place)
    name, tried = tail.rfind(b"IDAT"), set[int]()
    while name >= 4:
        at = name - 4
        # Only what chunks lead from to the end is one, and not four bytes of compressed pixels.
        while at + 8 <= len(tail) and at not in tried:
            if tail[at : at + len(_END)] == _END:
                return start + name - 4
            tried.add(at)
            at += 12 + int.from_bytes(tail[at : at + 4], "big")
        name = tail.rfind(b"IDAT", 0, name)
    return 0
