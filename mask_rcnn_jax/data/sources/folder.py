"""A folder of images without annotations, to predict on."""

from collections import Counter
from pathlib import Path

import numpy as np

from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.records.packed import pack
from mask_rcnn_jax.disk.files import exists, is_folder
from mask_rcnn_jax.disk.output_folder import without_outputs
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, displayed_size, list_images, opened_image


def image_folder(path: str | Path) -> CocoDataset:
    """The images of `path` and the folders in it, or the one image that `path` is, sorted, with ids from 1.

    What a command wrote as its output is left out. There are no classes. Only headers are read; files that are no
    images by theirs are left out and counted. Raises `UserError` where there is no image.
    """
    path = Path(path)
    if not exists(path):
        raise UserError(f"{path} does not exist; name an image or a folder of images.")
    records: list[Record] = []
    problems: Counter[str] = Counter()
    examples: dict[str, str] = {}
    what = "images that cannot be read, left out"
    for file in without_outputs(list_images(path), path) if is_folder(path) else [path]:
        try:
            with opened_image(file) as image:
                height, width = displayed_size(image)
        except UNREADABLE as error:
            problems[what] += 1
            examples.setdefault(what, f"{file} ({error})")
        else:
            records.append(_without_annotations(len(records) + 1, file, height, width))
    if not records:
        raise UserError(f"{examples.get(what, path)} holds no image that can be read; name another file or folder.")
    return CocoDataset(path, pack(records), (), (), problems=problems, examples=examples)


def _without_annotations(image_id: int, path: Path, height: int, width: int) -> Record:
    return Record(
        image_id=image_id,
        path=str(path),
        height=height,
        width=width,
        boxes=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int32),
        segmentations=(),
        iscrowd=np.zeros(0, bool),
        areas=np.zeros(0, np.float64),
        annotation_ids=np.zeros(0, np.int64),
    )
