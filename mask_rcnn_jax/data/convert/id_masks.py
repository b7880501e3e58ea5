"""Masks whose pixels number the objects of an image: Pascal VOC, Penn-Fudan, and folders laid out like these.

Pascal VOC has `SegmentationObject` for the objects and `SegmentationClass` for their classes, with the splits in
`ImageSets/Segmentation`. Others have one folder of masks, `STEM.png` or `STEM_mask.png` for the image `STEM.*`, and
one class.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mask_rcnn_jax.data.convert.json_files import read_lines
from mask_rcnn_jax.data.convert.outlines import instance_of_bitmap
from mask_rcnn_jax.data.convert.pictures import images_by_stem, picture_size, read_ids
from mask_rcnn_jax.data.convert.source import (
    UNSPLIT,
    Case,
    Instance,
    Picture,
    Source,
    Task,
    numbered,
    split_folders,
)
from mask_rcnn_jax.disk.files import is_file, is_folder
from mask_rcnn_jax.errors import UserError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC_VOID = 255  # outlines of objects and what was too hard to annotate

_LAYOUTS = (("PNGImages", "PedMasks"), ("images", "masks"))  # Penn-Fudan's names first
_MASK_ENDING = "_mask"


def read_id_masks(
    root: Path,
    class_name: str = "object",
    classes: Sequence[str] | None = None,
    void: int | None = None,
    images: str | None = None,
    masks: str | None = None,
) -> Source:
    """The images of `root` that have masks; 0 is background.

    `classes` are the names of the values 1, 2, ... in `SegmentationClass` (VOC's twenty by default), `class_name` that
    of all objects where there is no such folder. `void` is a value that belongs to no object (255 in VOC). `images` and
    `masks` name folders that are called otherwise. Raises UserError for a folder that is laid out in another way.
    """
    if masks is None and is_folder(root / "SegmentationObject"):
        return _read_voc(root, class_name, classes or VOC_CLASSES, VOC_VOID if void is None else void)
    reader = _Reader(None, (class_name,), void)
    folders = split_folders(root)
    if folders:
        splits = {name: _paired(folder, images, masks, reader) for name, folder in folders.items()}
    else:
        splits = {UNSPLIT: _paired(root, images, masks, reader)}
    return Source(splits, numbered([class_name]))


def _read_voc(root: Path, class_name: str, classes: Sequence[str], void: int) -> Source:
    objects, categories, pictures = root / "SegmentationObject", root / "SegmentationClass", root / "JPEGImages"
    if not is_folder(pictures):
        raise UserError(f"Folder {pictures} does not exist; put the images of {objects} there.")
    has_classes = is_folder(categories)
    reader = _Reader(categories if has_classes else None, classes if has_classes else (class_name,), void)
    images = images_by_stem(pictures)
    lists = root / "ImageSets" / "Segmentation"
    stems = {name: lists / f"{name}.txt" for name in ("train", "val", "test") if is_file(lists / f"{name}.txt")}
    listed = {name: _stems(file) for name, file in stems.items()}
    if not listed:
        listed = {UNSPLIT: sorted(path.stem for path in objects.glob("*.png"))}
    splits = {
        name: [
            Task(stem, partial(reader.picture, images.get(stem, pictures / f"{stem}.jpg"), objects / f"{stem}.png"))
            for stem in of_split
        ]
        for name, of_split in listed.items()
    }
    return Source(splits, numbered(reader.classes))


def _stems(file: Path) -> list[str]:
    try:
        return [stem for line in read_lines(file) for stem in line.split()]
    except ValueError as error:
        raise UserError(f"List {file} cannot be read: {error}; write the name of an image a line.") from None


def _paired(root: Path, images: str | None, masks: str | None, reader: "_Reader") -> list[Task]:
    """Tasks for the masks in one folder and the images in another."""
    known = [pair for pair in _LAYOUTS if all(is_folder(root / name) for name in pair)]
    image_folder, mask_folder = (root / given if given else None for given in (images, masks))
    if image_folder is None or mask_folder is None:
        if not known:
            pairs = " or ".join(f"{first} and {second}" for first, second in _LAYOUTS)
            raise UserError(
                f"Folder {root} holds neither SegmentationObject nor {pairs}; say --images-dir and --masks-dir."
            )
        image_folder, mask_folder = image_folder or root / known[0][0], mask_folder or root / known[0][1]
    for folder in (image_folder, mask_folder):
        if not is_folder(folder):
            raise UserError(f"Folder {folder} does not exist; name one that does.")
    by_stem = images_by_stem(image_folder)
    tasks = []
    for mask in sorted(images_by_stem(mask_folder).values()):
        stem = mask.stem if mask.stem in by_stem else mask.stem.removesuffix(_MASK_ENDING)
        image = by_stem.get(stem, image_folder / f"{stem}.png")
        tasks.append(Task(stem, partial(reader.picture, image, mask)))
    return tasks


class _Reader:
    """The conventions of one source's masks."""

    def __init__(self, class_masks: Path | None, classes: Sequence[str], void: int | None):
        self.class_masks = class_masks
        self.classes = classes
        self.void = void

    def picture(self, image: Path, mask: Path) -> Picture:
        height, width = picture_size(image, str(image))
        ids = read_ids(mask, height, width)
        of_class = None if self.class_masks is None else read_ids(self.class_masks / mask.name, height, width)
        instances: list[Instance] = []
        cases: list[Case] = []
        for value in np.unique(ids).tolist():
            if value in (0, self.void):
                continue
            bitmap, where = ids == value, f"{mask}, object {value}"
            name = self.classes[0] if of_class is None else self._name(of_class[bitmap], where, cases)
            if name is not None:
                instances.append(instance_of_bitmap(name, bitmap))
        return Picture(image.name, image, height, width, tuple(instances), tuple(cases))

    def _name(self, classes: Int[np.ndarray, " pixels"], where: str, cases: list[Case]) -> str | None:
        """The class of most pixels of an object."""
        values, counts = np.unique(classes[(classes != 0) & (classes != self.void)], return_counts=True)
        if not values.size:
            cases.append(Case("objects without a class, left out", where))
            return None
        if values.size > 1:
            cases.append(Case("objects of several classes, given that of most pixels", f"{where}: {values.tolist()}"))
        value = int(values[counts.argmax()])
        if not 1 <= value <= len(self.classes):
            cases.append(Case("objects of a class without a name, left out", f"{where}: class {value}"))
            return None
        return self.classes[value - 1]
