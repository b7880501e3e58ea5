"""Images and id masks that annotations refer to."""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.convert.source import Unusable
from mask_rcnn_jax.data.image_files import IMAGE_SUFFIXES, UNREADABLE, displayed_size

_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def picture_size(content: Path | bytes, where: str) -> tuple[int, int]:
    """(height, width) as displayed, from the header of an image. Raises `Unusable`, with `where` for bytes."""
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return displayed_size(image)
    except FileNotFoundError:
        raise Unusable("images that do not exist, left out", str(content)) from None
    except UNREADABLE as error:
        name = where if isinstance(content, bytes) else str(content)
        raise Unusable("images that cannot be read, left out", f"{name} ({error})") from None


def read_ids(path: Path) -> Int[np.ndarray, "H W"]:
    """The values of an id mask, in Fortran's order; of a palette image the indices. Raises `Unusable`."""
    try:
        with Image.open(path) as image:
            if image.mode not in _ID_MODES:
                raise Unusable("masks that hold colours and not ids, left out", f"{path} (mode {image.mode})")
            if image.width * image.height > DataConfig.max_pixels:
                size = f"{image.width} x {image.height}"
                raise Unusable("masks that are too large to be decoded, left out", f"{path} ({size})")
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
