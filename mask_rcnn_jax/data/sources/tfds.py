"""Reads the annotations of ArrayRecord shards into records whose images stay in the shards."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.records.annotations import AnnotationReader
from mask_rcnn_jax.data.records.entries import check_annotation, check_category, check_image, parse_json, refusal, shown
from mask_rcnn_jax.data.records.packed import pack
from mask_rcnn_jax.data.records.shards import (
    ANNOTATIONS,
    EXAMPLES,
    ShardImage,
    shards_metadata,
    split_examples,
    version_directory,
)
from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import Incidental

_AT_ONCE = 1024  # examples read in one go


@dataclass(frozen=True)
class TfdsConfig(SourceConfig):
    """ArrayRecord shards that `mask-rcnn build-tfds` wrote to `data_dir`, under `name`."""

    data_dir: Annotated[str, Incidental()] = "data/tfds"
    name: str = "coco"
    train_split: str = "train"
    val_split: str = "val"
    boxes_only: bool = False

    def load(self, split: str) -> CocoDataset:
        return load_tfds(self, split)


def load_tfds(config: TfdsConfig, split: str) -> CocoDataset:
    """The split's records, the same as those of the directory that the shards were made from, but for `path`.

    Raises `UserError` where there are no such shards, or tensorflow-datasets is not installed.
    """
    images = str(version_directory(config.data_dir, config.name, EXAMPLES))
    annotations = version_directory(config.data_dir, config.name, ANNOTATIONS)
    examples = split_examples(str(annotations), split)
    categories = _categories(annotations, split)
    known = {category["id"] for category in categories}
    reader = AnnotationReader(annotations, categories, config.boxes_only)

    def records() -> Iterator[Record]:
        for start in range(0, len(examples), _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, len(examples)))
            for index, example in zip(indices, examples.__getitems__(list(indices)), strict=True):
                try:
                    entry, found = _parse(example, known)
                except ValueError as error:
                    raise refusal("Example", f"{split}[{index}]", None, annotations, error) from None
                # No such file exists, but it tells a person which image is meant.
                path = Path(images, split, entry["file_name"])
                yield reader.record(entry, path, found, shard=ShardImage(images, split, index))

    return reader.dataset(pack(records()))


def _categories(directory: Path, split: str) -> list[Any]:
    metadata = shards_metadata(str(directory))
    try:
        categories = metadata["categories"][split]
        for entry in categories:
            check_category(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory} has no categories for '{split}' ({error}); write it again.") from None
    return categories


def _parse(example: dict[str, Any], categories: Collection[int]) -> tuple[dict[str, Any], list[Any]]:
    """The entry of an image and its annotations; ValueError as of `entries`, for shards that others wrote."""
    try:
        entry, found = parse_json(example["entry"]), parse_json(example["annotations"])
    except ValueError as error:
        raise ValueError(f"cannot be read: {error}; write the shards again") from None
    images = {check_image(entry)}
    if not isinstance(found, list):
        raise ValueError(f"has the annotations {shown(found)}, which are not a list; write the shards again")
    for annotation in found:
        check_annotation(annotation, images, categories)
    return entry, found
