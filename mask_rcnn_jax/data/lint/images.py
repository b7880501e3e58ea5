"""Checks of the image files, and what is kept of each to find copies."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from mask_rcnn_jax.data.augment.transforms import read_image
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.lint.annotations import Split
from mask_rcnn_jax.disk.files import is_file
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, displayed_size, is_turned, list_images, opened_image

THUMBNAIL = 16  # pixels a side


@dataclass(frozen=True, eq=False)
class File:
    """The contents of an image file."""

    split: str
    path: str  # below the dataset's folder
    problem: tuple[str, str] | None = None  # code and message
    size: tuple[int, int] = (0, 0)  # (height, width) as displayed
    turned: bool = False  # by EXIF, so that it is stored with sides exchanged
    digest: bytes = b""  # of the displayed pixels; empty where they were not decoded
    thumbnail: Float32[np.ndarray, "t t"] | None = None  # grey levels


def check_images(root: Path, splits: Iterable[Split], decode: bool) -> list[File]:
    """Adds what is wrong with the image files to the splits' findings; returns the files that can be read.

    Without `decode` only headers are read: a truncated file passes.
    """
    jobs: dict[tuple[str, str], Split] = {}
    for split in splits:
        if split.folder:
            jobs |= {(split.name, split.path(entry)): split for entry in split.images}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = pool.map(lambda job: _inspect(root, job[0], job[1], decode), jobs)
        files = dict(zip(jobs, found, strict=True))  # here: the pool's end waits for all, after Ctrl-C too
    for split in splits:
        if split.folder:
            _report(root, split, files)
    return [file for file in files.values() if file.problem is None]


def _inspect(root: Path, split: str, path: str, decode: bool) -> File:
    """Reads one file."""
    file = root / path
    try:
        if not is_file(file):
            return File(split, path, ("image-missing", "does not exist"))
        if file.stat().st_size == 0:
            return File(split, path, ("image-broken", "is empty: it has no bytes"))
        with opened_image(file) as image:
            size, turned = displayed_size(image), is_turned(image)
        if size[0] * size[1] > DataConfig.max_pixels:
            message = f"is {size[1]} x {size[0]} by its header, more than {DataConfig.max_pixels} pixels"
            return File(split, path, ("image-huge", message))
        if not decode:
            return File(split, path, None, size, turned)
        pixels = read_image(file)
    except (UserError, *UNREADABLE) as error:
        cause = error.__cause__ or error
        return File(split, path, ("image-broken", f"cannot be read: {cause}"))
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    side = (THUMBNAIL, THUMBNAIL)
    # As floats: in bytes, rounding would be most of what a dark image shows.
    grey = Image.fromarray(pixels).convert("L").reduce(_reduction(size)).convert("F")
    thumbnail = np.asarray(grey.resize(side, Image.Resampling.BOX), np.float32)
    return File(split, path, None, size, turned, digest.digest(), thumbnail)


def _reduction(size: tuple[int, int]) -> int:
    return max(min(size) // (8 * THUMBNAIL), 1)


def _report(root: Path, split: Split, files: dict[tuple[str, str], File]) -> None:
    reported: set[str] = set()
    for entry in split.images:
        path, id_ = split.path(entry), entry["id"]
        file = files[split.name, path]
        if file.problem is not None:
            if path not in reported:
                split.add(*file.problem, path, image_id=id_)
                reported.add(path)
            continue
        annotated, (height, width) = (entry["height"], entry["width"]), file.size
        if annotated == file.size:
            continue
        is_stored_size = file.turned and annotated == (width, height)
        shown = f"is {width} x {height} as displayed and annotated as {annotated[1]} x {annotated[0]}"
        split.add("image-turned" if is_stored_size else "image-size", shown, path, image_id=id_)
    for path in list_images(root / split.folder):
        name = path.relative_to(root / split.folder).as_posix()
        if name not in split.files:
            split.add("image-unlisted", "is not listed", f"{split.folder}/{name}")
