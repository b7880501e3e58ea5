"""Interface of a format's reader to the writer: for each split, tasks that read one image's annotations each.

Coordinates are continuous pixels of the image as displayed, which covers [0, W] x [0, H], as in COCO.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mask_rcnn_jax.data.records.masks import Segmentation
from mask_rcnn_jax.disk.files import ANY_TEXT, is_folder
from mask_rcnn_jax.errors import UserError

SPLIT_FOLDERS = ("train", "val", "valid", "test")
UNSPLIT = ""  # names the one split of an input that has none of its own


@dataclass(frozen=True)
class Case:
    """One thing that was left out or changed on the way."""

    what: str  # of many, such as "points, left out": a count precedes it
    where: str  # the file, and the object in it


class Unusable(Exception):
    """An image that is left out whole; the arguments are those of a `Case`."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One object, with polygons inside the image or an RLE that is not empty."""

    category: str
    segmentation: Segmentation
    iscrowd: bool = False


@dataclass(frozen=True, eq=False)
class Picture:
    """One image with its objects."""

    file_name: str  # below the split's folder, with forward slashes
    content: Path | bytes  # the image file, or what will be in it
    height: int
    width: int
    instances: tuple[Instance, ...]
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Task:
    """An image to convert: `read` returns it, or raises `Unusable`."""

    name: str  # tells the images of a source apart; the same on every machine
    read: Callable[[], Picture]


@dataclass(frozen=True)
class Source:
    """All that a reader found."""

    splits: Mapping[str, Sequence[Task]]  # or all tasks as `UNSPLIT`
    categories: dict[str, int] | None  # ids by name, where the format states them; None: names as they are found
    cases: tuple[Case, ...] = ()  # of the input as a whole


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Ids from 1 for `names`, in their order. Raises UserError for a name that occurs twice."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f"Class '{name}' is named twice; name each class once.")
    return {name: index + 1 for index, name in enumerate(names)}


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of `root` that are named as splits; empty when there are none."""
    return {name: root / name for name in SPLIT_FOLDERS if is_folder(root / name)}


def choose_splits(source: Source, split: str | None, val_share: float | None) -> Source:
    """The source with the one split that was asked for, or with a share of its images as the split "val".

    Images of an input without splits become `split`, or "train". They go to "val" by a hash of their names: the same
    ones on every machine. Raises UserError for a split that is not there, and for a share of
    an input that has splits of its own.
    """
    if UNSPLIT not in source.splits:
        own = ", ".join(source.splits)
        if val_share is not None:
            raise UserError(f"The input has the splits {own} of its own; leave out --val-share.")
        if split is not None and split not in source.splits:
            raise UserError(f"The input has no split '{split}'; choose from {own}.")
        chosen = source.splits if split is None else {split: source.splits[split]}
        return replace(source, splits=chosen)
    tasks, split = source.splits[UNSPLIT], split or "train"
    if val_share is None:
        return replace(source, splits={split: tasks})
    by_hash = sorted(tasks, key=lambda task: hashlib.sha256(task.name.encode(errors=ANY_TEXT)).digest())
    val_names = {task.name for task in by_hash[: round(val_share * len(tasks))]}
    train = [task for task in tasks if task.name not in val_names]
    val = [task for task in tasks if task.name in val_names]
    if split == "val" or not train or not val:
        raise UserError(f"--val-share {val_share:g} of {len(tasks)} images leaves '{split}' or 'val' empty; change it.")
    return replace(source, splits={split: train, "val": val})
