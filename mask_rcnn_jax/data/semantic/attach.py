"""Gives a dataset what every pixel of its images shows, from files in COCO's panoptic format."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn_jax.data.records import CocoDataset, Record, SemanticLabels
from mask_rcnn_jax.data.records.entries import (
    JsonObject,
    check_category,
    check_object,
    file_name,
    flag,
    list_of,
    read_json,
    refusal,
    value_of,
    whole,
)
from mask_rcnn_jax.data.records.proposed import labelled
from mask_rcnn_jax.disk.files import is_file
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.structures import IGNORED

_LARGEST_NUMBER = 256**3 - 1  # of a segment, whose digits are the colours of a pixel


@dataclass(frozen=True)
class Categories:
    """The categories of a panoptic file by id: classes of things as the dataset numbers them, and kinds of stuff."""

    class_of: Mapping[int, int]
    kind_of: Mapping[int, int]  # from 1, by ascending id
    names: tuple[str, ...]  # of the kinds of stuff


def with_semantic(dataset: CocoDataset, panoptic_file: Path, kinds_folder: Path | None) -> CocoDataset:
    """The dataset whose records have the segments that `panoptic_file` lists, in COCO's panoptic format.

    Its PNG files lie in a folder beside it of the same name without suffix; things are those of `dataset`, by id.
    `kinds_folder`, if given, holds PNG files of the same names with a kind a pixel (0 things, 1.. stuff by ascending
    id, 255 ignored), as Detectron2 prepares them, which are then read to train on. Raises `UserError` where a file is
    missing, the JSON is not of that format or names what there is not, or an image has no segments.
    """
    content = _content(panoptic_file)
    categories = _categories(dataset, panoptic_file, content["categories"])
    images = {record.image_id for record in dataset.records}
    entries: dict[int, tuple[str, np.ndarray]] = {}
    for index, entry in enumerate(content["annotations"]):
        try:
            image_id = whole(check_object(entry), "image_id")
            if image_id in entries:
                raise ValueError("has the image_id of another: an image has one map of segments; remove one")
            if image_id in images:
                entries[image_id] = file_name(entry), _segments(entry, categories)
        except ValueError as error:
            raise refusal("Annotation", f"annotations[{index}]", entry, panoptic_file, error) from None
    folder, num_kinds = panoptic_file.with_suffix(""), len(categories.names) + 1

    def labels_of(record: Record) -> SemanticLabels:
        if record.image_id not in entries:
            raise UserError(
                f"{panoptic_file} has no segments of image {record.image_id} ({record.path}); add them, or take the"
                f" image out of {dataset.annotation_file}"
            )
        name, segments = entries[record.image_id]
        return SemanticLabels(
            str(folder / name), segments, num_kinds, None if kinds_folder is None else str(kinds_folder / name)
        )

    found = [labels_of(record) for record in dataset.records]
    _check_present(panoptic_file, [Path(each.kinds_path or each.path) for each in found])
    return replace(
        dataset,
        records=labelled(dataset.records, found),
        stuff_names=categories.names,
        stuff_categories=tuple(sorted(categories.kind_of, key=categories.kind_of.__getitem__)),
    )


def check_segments(dataset: CocoDataset) -> None:
    """Raise `UserError` where the map of segments of an image is missing: evaluation reads them all, and training may
    do with the kinds alone.
    """
    labels = [record.semantic for record in dataset.records]
    _check_present(dataset.annotation_file, [Path(each.path) for each in labels if each is not None])


def _content(path: Path) -> JsonObject:
    if not is_file(path):
        raise UserError(
            f"Panoptic file {path} does not exist; put it there, or set data.source.panoptic_file to none for a model"
            " without a semantic head"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"Panoptic file {path} cannot be read: {error}; export it again.") from None
    for key in ("annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"Panoptic file {path} has no list '{key}'; export it in COCO's panoptic format.")
    return content


def _categories(dataset: CocoDataset, path: Path, entries: list[Any]) -> Categories:
    things = {category: index for index, category in enumerate(dataset.categories)}
    class_of: dict[int, int] = {}
    stuff: dict[int, str] = {}
    for index, entry in enumerate(entries):
        try:
            id_, name = check_category(entry)
            value_of(entry, "isthing")
            if id_ in class_of or id_ in stuff:
                raise ValueError("has the id of another: it occurs twice; make the ids unique")
            if not flag(entry, "isthing"):
                stuff[id_] = name
            elif id_ in things:
                class_of[id_] = things[id_]
            else:
                raise ValueError(f"is a thing that {dataset.annotation_file} has no category for; add it there")
        except ValueError as error:
            raise refusal("Category", f"categories[{index}]", entry, path, error) from None
    if not 1 <= len(stuff) < IGNORED:
        raise UserError(f"{path} has {len(stuff)} kinds of stuff (isthing 0), not from 1 to {IGNORED - 1}; correct it")
    ordered = sorted(stuff)
    kind_of = {id_: kind for kind, id_ in enumerate(ordered, 1)}
    return Categories(class_of, kind_of, tuple(stuff[id_] for id_ in ordered))


def _segments(entry: JsonObject, categories: Categories) -> np.ndarray:
    """The rows of `SemanticLabels.segments`."""
    rows: list[tuple[int, int, int, bool]] = []
    for index, segment in enumerate(list_of(entry, "segments_info")):
        try:
            number = whole(check_object(segment), "id", 1, _LARGEST_NUMBER)
            category = whole(segment, "category_id")
            if category not in categories.class_of and category not in categories.kind_of:
                raise ValueError(f"has the unknown category_id {category}; add it to 'categories'")
            of_thing = categories.class_of.get(category, -1)
            rows.append((number, categories.kind_of.get(category, 0), of_thing, flag(segment, "iscrowd")))
        except ValueError as error:
            raise ValueError(f"has a segment, segments_info[{index}], that {error}") from None
    if len({number for number, *_ in rows}) < len(rows):
        raise ValueError("has two segments of one id; make the ids of an image's segments unique")
    return np.array(rows, np.int64).reshape(-1, 4)


def _check_present(panoptic_file: Path, files: list[Path]) -> None:
    missing = [path for path in files if not is_file(path)]
    if missing:
        more = f" and {len(missing) - 1} more files of it do" if len(missing) > 1 else " does"
        raise UserError(f"{missing[0]}, which belongs to {panoptic_file},{more} not exist; restore it.")
