"""What the header of an image file says, without decoding its pixels."""

from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

UNREADABLE = (Image.UnidentifiedImageError, OSError, SyntaxError, ValueError)  # what Pillow raises for broken files

_EXIF_ORIENTATION = 0x0112


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation displays the image a quarter-turn away from how it is stored."""
    # Asking a PNG for EXIF that precedes no pixels would decode it.
    has_exif = image.format != "PNG" or "exif" in image.info
    return has_exif and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as displayed."""
    width, height = image.size
    return (width, height) if is_turned(image) else (height, width)


def list_images(folder: Path) -> list[Path]:
    """The image files of `folder` and the folders in it, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
