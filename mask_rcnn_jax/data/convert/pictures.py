"""Images and id masks that annotations refer to."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.convert.source import Unusable
from mask_rcnn_jax.media.image_files import IMAGE_SUFFIXES, UNREADABLE, decode_upright, displayed_size, opened_image

_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def picture_size(content: Path | bytes, where: str) -> tuple[int, int]:
    """(height, width) as displayed, from the header of an image. Raises `Unusable`, with `where` for bytes."""
    name = where if isinstance(content, bytes) else str(content)
    try:
        with opened_image(content) as image:
            height, width = displayed_size(image)
    except FileNotFoundError:
        raise Unusable("images that do not exist, left out", name) from None
    except UNREADABLE as error:
        raise Unusable("images that cannot be read, left out", f"{name} ({error})") from None
    if height * width > DataConfig.max_pixels:
        raise Unusable("images that are too large to be decoded, left out", f"{name} ({width} x {height})")
    return height, width


def read_ids(path: Path, height: int, width: int) -> Int[np.ndarray, "{height} {width}"]:
    """The values of an id mask, in Fortran's order; of a palette image the indices. Raises `Unusable`, before decoding
    for a mask that has another size than its image.
    """
    try:
        with opened_image(path) as image:
            if image.mode not in _ID_MODES:
                raise Unusable("masks that hold colours and not ids, left out", f"{path} (mode {image.mode})")
            size = displayed_size(image)
            if size != (height, width):
                sizes = f"{path}: {size[1]} x {size[0]}, its image {width} x {height}"
                raise Unusable("masks that are not of their image's size, left out", sizes)
            decode_upright(path, image)
            return np.asarray(image).astype(np.int32, order="F")
    except FileNotFoundError:
        raise Unusable("masks that do not exist, left out", str(path)) from None
    except UNREADABLE as error:
        raise Unusable("masks that cannot be read, left out", f"{path} ({error})") from None


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The image files in `folder` by their name without suffix; where two share one, the first in order."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, path)
    return found


def name_below(path: Path, root: Path) -> str:
    """The path of a file below `root`, or its bare name where it lies elsewhere; with forward slashes."""
    try:
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        return path.name
