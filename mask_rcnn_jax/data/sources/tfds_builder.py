"""A tensorflow-datasets builder that turns a COCO directory into ArrayRecord shards, without TensorFlow.

Two configurations are written. An example of "examples" is an image: its encoded bytes as they are in the file, and as
JSON text (tensorflow-datasets would round numbers to float32) its "entry" of the file's "images" and its "annotations".
"annotations" are the same without the image, to be read at the start of a run. Examples keep the file's order;
the categories of each split are in the metadata.
"""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mask_rcnn_jax.data.records.shards import ANNOTATIONS, EXAMPLES, check_unicode, import_tfds
from mask_rcnn_jax.data.sources.coco import (
    AnnotationFile,
    CocoConfig,
    check_present,
    check_root,
    image_directory,
    read_annotations,
)
from mask_rcnn_jax.disk.files import exists
from mask_rcnn_jax.errors import UserError

VERSION = "1.0.0"

Example = dict[str, Any]
Progress = Callable[[Iterable[tuple[int, Example]], str, int], Iterable[tuple[int, Example]]]


def build_tfds(
    source: CocoConfig,
    data_dir: str | Path,
    name: str,
    splits: Sequence[str],
    progress: Progress = lambda examples, what, count: examples,
) -> Path:
    """Writes `splits` of the directory as shards into `data_dir`/`name`, which it returns and which must not exist.

    They are written beside and then renamed. `progress` is handed the examples of each split, what they are, and how
    many. Raises `UserError` where the directory cannot be read or the shards cannot be written.
    """
    target = Path(data_dir) / name
    for word in (name, *splits):
        if not re.fullmatch(r"[A-Za-z]\w*", word):
            raise UserError(f"'{word}' is no name for shards; use letters, digits and _, and begin with a letter.")
    check_unicode(Path(os.path.abspath(target)), "--out")
    if exists(target):
        raise UserError(f"{target} exists; remove it, or choose another --name or --out.")
    import_tfds()
    root = check_root(source.root)
    files = {split: read_annotations(_annotation_path(source, split)) for split in splits}
    folders = {split: image_directory(root, split) for split in splits}
    for split, file in files.items():
        check_present(file.path, (folders[split] / entry["file_name"] for entry in file.images.values()))

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written: {error.strerror or error}") from None
    try:
        for part in (EXAMPLES, ANNOTATIONS):
            _write(name, part, files, folders, beside, progress)
        os.rename(beside / name, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _annotation_path(source: CocoConfig, split: str) -> Path:
    return Path(source.root) / "annotations" / source.annotation_file.replace("{split}", split)


def _write(
    name: str,
    part: str,
    files: dict[str, AnnotationFile],
    folders: dict[str, Path],
    directory: Path,
    progress: Progress,
) -> None:
    def examples(split: str) -> Iterator[tuple[int, Example]]:
        file = files[split]
        for index, (image_id, entry) in enumerate(file.images.items()):
            try:
                example = {"entry": json.dumps(entry), "annotations": json.dumps(file.annotations[image_id])}
            except RecursionError:
                raise UserError(f"Image {image_id} in {file.path} has entries nested too deeply; correct it.") from None
            if part == EXAMPLES:
                example["image"] = folders[split] / entry["file_name"]
            yield index, example

    generators = {
        split: progress(examples(split), f"{split}, {part}", len(file.images)) for split, file in files.items()
    }
    metadata = {"categories": {split: file.categories for split, file in files.items()}}
    tfds = import_tfds()
    builder = _builder_class()(name, part, generators, metadata, data_dir=directory, file_format="array_record")
    # It talks to standard output, and has a progress bar that knows of no total.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=directory / "downloads")


def _builder_class() -> Any:
    """The builder's class, made late because tensorflow-datasets need not be installed."""
    tfds = import_tfds()

    base: Any = tfds.core.GeneratorBasedBuilder

    class CocoShards(base, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """A COCO directory as it is: nothing in it is decoded, rounded or left out."""

        VERSION = tfds.core.Version(VERSION)
        url_infos = None  # nothing is downloaded, and tfds 4.9.10 looks for checksums by a package it does not declare
        BUILDER_CONFIGS: tuple[Any, ...] = (
            tfds.core.BuilderConfig(name=EXAMPLES, description="Encoded images with their annotations"),
            tfds.core.BuilderConfig(name=ANNOTATIONS, description="The annotations without the images"),
        )

        def __init__(self, name: str, part: str, generators: dict[str, Any], metadata: dict[str, Any], **settings: Any):
            self.name, self._generators, self._metadata = name, generators, metadata
            super().__init__(config=part, **settings)

        def _info(self) -> Any:
            features = {"entry": tfds.features.Text(), "annotations": tfds.features.Text()}
            if self.builder_config.name == EXAMPLES:
                features["image"] = tfds.features.Image(shape=(None, None, 3))
            return tfds.core.DatasetInfo(
                builder=self,
                description="Images with COCO annotations.",
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(self._metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, download_manager: Any) -> dict[str, Any]:
            return self._generators

        def _generate_examples(self) -> Any:
            raise NotImplementedError  # the generators are handed in, one a split

    return CocoShards
