"""Checks a dataset's image files before a run, without decoding those that look whole."""

from concurrent.futures import ThreadPoolExecutor

from PIL import Image, UnidentifiedImageError

from mask_rcnn_jax.data.coco import CocoDataset, Record
from mask_rcnn_jax.data.transforms import read_image
from mask_rcnn_jax.errors import UserError

_EXIF_ORIENTATION = 0x0112
_END_MARKERS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


def verify_images(dataset: CocoDataset) -> None:
    """Raises `UserError` naming the files that are unreadable, truncated, or not of the annotated size.

    Reads headers and the last bytes only; a file that does not end as its format should is decoded to be sure.
    """
    with ThreadPoolExecutor(8) as pool:
        found = [problem for problem in pool.map(_image_problem, dataset.records) if problem]
    if found:
        more = f" ({len(found)} images in all: see {dataset.annotation_file})" if len(found) > 1 else ""
        raise UserError(found[0] + more)


def _image_problem(record: Record) -> str | None:
    try:
        with Image.open(record.path) as image:
            width, height = image.size
            marker = _END_MARKERS.get(image.format or "")
            # Asking a PNG for EXIF that precedes no pixels would decode it.
            has_exif = image.format != "PNG" or "exif" in image.info
            if has_exif and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
        if (height, width) != (record.height, record.width):
            return size_mismatch(record, height, width)
        if marker is None or marker not in _last_bytes(record.path):
            read_image(record.path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"Image {record.path} cannot be read ({error}); restore or replace the file."
    except UserError as error:
        return str(error)
    return None


def size_mismatch(record: Record, height: int, width: int) -> str:
    """Says that the image is not of the annotated size."""
    return (
        f"Image {record.path} is {width} x {height} as displayed but annotated as {record.width} x {record.height};"
        " replace the image or correct its entry."
    )


def _last_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 16, 0))
        return file.read()
