"""Examples in ArrayRecord shards, as `tfds_builder` writes them, read through `tfds.data_source`.

tensorflow-datasets is imported when shards are first read; it needs no TensorFlow for that.
"""

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_rcnn_jax.disk.files import is_file, is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require

EXAMPLES, ANNOTATIONS = "examples", "annotations"  # the builder's configurations: the latter leaves images out


EncodedFile = io.BufferedReader | io.BytesIO


@dataclass(frozen=True)
class ShardImage:
    """The place of an encoded image in the shards of one split; cheap to send to another process."""

    directory: str  # a version's folder, with dataset_info.json
    split: str
    index: int  # of the example in the split

    def open(self) -> EncodedFile:
        """The encoded image as a file to read; OSError where the shards cannot be read."""
        try:
            return io.BytesIO(split_examples(self.directory, self.split)[self.index]["image"])
        except (ValueError, IndexError, RuntimeError) as error:  # the last two are ArrayRecord's
            raise OSError(f"{self}: {error}") from error


def import_tfds() -> Any:
    """The module tensorflow_datasets; `UserError` where it is not installed."""
    require("tfds", "an ArrayRecord shard")
    import tensorflow_datasets

    return tensorflow_datasets


def check_unicode(folder: Path, key: str) -> None:
    """Raise UserError where a folder's name is not Unicode, which ArrayRecord needs; `key` is what it was given for."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}: shards cannot lie in {str(folder)!r}, which is no valid UTF-8; rename it") from None


def version_directory(data_dir: str | Path, name: str, part: str) -> Path:
    """The folder of the dataset's highest version; `UserError` where there is none. `part` is a configuration."""
    folder = Path(data_dir) / name / part
    check_unicode(folder, "data.source.data_dir")
    found = folder.glob("*.*.*") if is_folder(folder) else ()  # raises for a long name
    versions = [path for path in found if is_file(path / "dataset_info.json")]
    if not versions:
        raise UserError(f"{folder} holds no dataset; write it with mask-rcnn build-tfds, or set data.source.data_dir.")
    return max(versions, key=lambda path: [int(number) for number in path.name.split(".")])


@functools.lru_cache(maxsize=8)
def builder_of(directory: str) -> Any:
    """The read-only tfds builder of a version's folder."""
    return import_tfds().builder_from_directory(directory)


@functools.lru_cache(maxsize=16)
def split_examples(directory: str, split: str) -> Any:
    """The examples of a split by index, opened once in each process; images stay encoded and texts are bytes."""
    builder = builder_of(directory)
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits) or "none"
        raise UserError(f"{directory} has no split '{split}', only {known}; set data.source.train_split and val_split.")
    decoders = {"image": import_tfds().decode.SkipDecoding()} if "image" in builder.info.features else None
    return builder.as_data_source(split, decoders=decoders)


def shards_metadata(directory: str) -> dict[str, Any]:
    """Read what the builder wrote about the splits: "categories" has those of each."""
    return builder_of(directory).info.metadata
