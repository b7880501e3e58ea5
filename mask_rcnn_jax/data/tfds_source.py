"""Reads the annotations of ArrayRecord shards into records whose images stay in the shards."""

import json
from collections.abc import Iterator
from pathlib import Path

from mask_rcnn_jax.data.annotations import AnnotationReader
from mask_rcnn_jax.data.config import TfdsConfig
from mask_rcnn_jax.data.packed import pack
from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.shards import (
    ANNOTATIONS,
    EXAMPLES,
    ShardImage,
    shards_metadata,
    split_examples,
    version_directory,
)

_AT_ONCE = 1024  # examples read in one go


def load_tfds(config: TfdsConfig, split: str) -> CocoDataset:
    """The split's records, the same as those of the directory that the shards were made from, but for `path`.

    Raises `UserError` where there are no such shards, or tensorflow-datasets is not installed.
    """
    images = str(version_directory(config.data_dir, config.name, EXAMPLES))
    annotations = version_directory(config.data_dir, config.name, ANNOTATIONS)
    examples = split_examples(str(annotations), split)
    reader = AnnotationReader(annotations, shards_metadata(str(annotations))["categories"][split], config.boxes_only)

    def records() -> Iterator[Record]:
        for start in range(0, len(examples), _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, len(examples)))
            for index, example in zip(indices, examples.__getitems__(list(indices)), strict=True):
                entry, found = json.loads(example["entry"]), json.loads(example["annotations"])
                # No such file exists, but it tells a person which image is meant.
                path = Path(images, split, entry["file_name"])
                yield reader.record(entry, path, found, shard=ShardImage(images, split, index))

    return reader.dataset(pack(records()))
