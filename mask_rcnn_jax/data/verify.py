"""Checks a dataset's image files before a run, without decoding those that look whole."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from mask_rcnn_jax.data.augment.transforms import open_image
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.records.packed import Selection
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, check_pixels, displayed_size, opened_image, with_retries

_END_MARKERS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_DEFAULTS = DataConfig()
_LEFT_OUT = "images that cannot be used, left out"


def verify_images(dataset: CocoDataset, config: DataConfig = _DEFAULTS) -> CocoDataset:
    """The dataset without the images that are unreadable, truncated, too large, or not of the annotated size, which are
    counted among its problems; `UserError` naming them where `config.broken_images` is "fail".

    Reads headers and the last bytes only; a file that does not end as its format should is decoded to be sure. Images
    in shards are not looked at: reading them takes as long as an epoch, and `mask-rcnn build-tfds` has done it.
    """
    records = dataset.records
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(lambda i: _image_problem(records[i], config.max_pixels), range(len(records))))
    found = [problem for problem in problems if problem]
    if not found:
        return dataset
    if config.broken_images == "fail" or len(found) == len(problems):
        more = f" ({len(found)} images in all: see {dataset.annotation_file})" if len(found) > 1 else ""
        raise UserError(found[0] + more)
    return leave_out(dataset, {index: problem for index, problem in enumerate(problems) if problem})


def leave_out(dataset: CocoDataset, problems: Mapping[int, str]) -> CocoDataset:
    """Return the dataset without the records at the indices `problems`, which are counted among its problems."""
    usable = [index for index in range(len(dataset.records)) if index not in problems]
    return replace(
        dataset,
        records=Selection(dataset.records, np.array(usable, np.int64)),
        problems=dataset.problems + Counter({_LEFT_OUT: len(problems)}),
        examples={_LEFT_OUT: next(iter(problems.values()))} | dataset.examples,
    )


def _image_problem(record: Record, max_pixels: int) -> str | None:
    if record.shard is not None:
        return None

    def look() -> tuple[tuple[int, int], bool]:
        with record.open() as file, opened_image(file) as image:
            check_pixels(record.path, image, max_pixels)
            size, marker = displayed_size(image), _END_MARKERS.get(image.format or "")
            file.seek(0, 2)
            file.seek(max(file.tell() - 16, 0))
            return size, marker is not None and marker in file.read()

    try:
        size, ends = with_retries(look)
        if size != (record.height, record.width):
            return size_mismatch(record, *size)
        if not ends:
            open_image(record.path, max_pixels, record.open)
    except UNREADABLE as error:
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
