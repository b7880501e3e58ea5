"""Cityscapes: `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png` beside `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`.

A pixel is label * 1000 + number in an instance, and the bare label elsewhere; a bare label of a class with instances
is a group of objects that were not told apart.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mask_rcnn_jax.data.convert.outlines import instance_of_bitmap
from mask_rcnn_jax.data.convert.pictures import picture_size, read_ids
from mask_rcnn_jax.data.convert.source import Picture, Source, Task
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError

# The classes with instances that Cityscapes evaluates, under their label ids.
CATEGORIES = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}

_ANNOTATIONS, _IMAGES = "gtFine", "leftImg8bit"
_SUFFIX = "_gtFine_instanceIds.png"


def read_cityscapes(root: Path) -> Source:
    """The splits of `root`. Images keep their folders, one a city; groups become crowds.

    Raises UserError where `root` is not laid out as Cityscapes is.
    """
    annotations = root / _ANNOTATIONS
    if not is_folder(annotations):
        raise UserError(
            f"Folder {annotations} does not exist; name the folder that holds {_ANNOTATIONS} and {_IMAGES}."
        )
    splits: dict[str, list[Task]] = {}
    for folder in sorted(path for path in annotations.iterdir() if is_folder(path)):
        masks = sorted(folder.glob(f"*/*{_SUFFIX}"))
        if masks:
            splits[folder.name] = [Task(mask.name, partial(_picture, root, folder.name, mask)) for mask in masks]
    if not splits:
        raise UserError(f"Folder {annotations} holds no SPLIT/CITY/*{_SUFFIX}; unpack gtFine_trainvaltest.zip there.")
    return Source(splits, CATEGORIES)


def _picture(root: Path, split: str, mask: Path) -> Picture:
    file_name = f"{mask.parent.name}/{mask.name.removesuffix(_SUFFIX)}_{_IMAGES}.png"
    image = root / _IMAGES / split / file_name
    height, width = picture_size(image, str(image))
    ids = read_ids(mask, height, width)
    names = {label: name for name, label in CATEGORIES.items()}
    instances = []
    for value in np.unique(ids).tolist():
        is_group = value < 1000
        name = names.get(value if is_group else value // 1000)
        if name is not None:
            instances.append(instance_of_bitmap(name, ids == value, iscrowd=is_group))
    return Picture(file_name, image, height, width, tuple(instances))
