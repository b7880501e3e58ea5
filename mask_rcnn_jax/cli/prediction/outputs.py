"""The outputs of `mask-rcnn predict`: a writer for each `--format`."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mask_rcnn_jax.cli.prediction.tables import open_table
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections, Stuff, panoptic_map
from mask_rcnn_jax.inference.results.outputs import (
    COLUMNS,
    column_names,
    cutouts,
    label_image,
    mask_windows,
    table_rows,
    to_geojson,
)
from mask_rcnn_jax.inference.results.panoptic import to_coco_panoptic
from mask_rcnn_jax.inference.results.semantic import semantic_map
from mask_rcnn_jax.media.inputs import InputImage
from mask_rcnn_jax.visualize import Instances, draw_instances
from mask_rcnn_jax.visualize.draw import DRAWN_KEYPOINT

ReadImage = Callable[[], UInt8[np.ndarray, "H W 3"]]

_JPEG = (".jpg", ".jpeg")
_NO_STUFF = Stuff()
_LABEL_LENGTH = 60  # characters of a class in a file's name, which file systems limit to 255 bytes


@runtime_checkable
class Writer(Protocol):
    """Writes what was found in one image after another, in a `with`, whose end completes the files of several images.

    Leaving it by an exception, such as an OSError of `write`, leaves those out.
    """

    def __init__(self, outputs: OutputFolder, category_ids: Sequence[int], stuff: Stuff = _NO_STUFF) -> None: ...

    @staticmethod
    def files(out: Path, image: InputImage) -> Iterable[Path]:
        """The files in the folder `out` that may be written for the image."""
        ...

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        """`name` is a relative path without suffix, unique to the image; `image` reads it.

        Raises UserError where this image's file alone cannot be written.
        """
        ...

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def place(self) -> Path:
        """The file or folder that it writes."""
        ...


class _OneFileEach:
    """A writer of files of their own for each image."""

    folder = ""
    suffix = ""

    def __init__(self, outputs: OutputFolder, category_ids: Sequence[int], stuff: Stuff = _NO_STUFF) -> None:
        self.place = outputs.root / self.folder
        self._outputs = outputs

    @classmethod
    def files(cls, out: Path, image: InputImage) -> Iterable[Path]:
        return [out / cls.folder / f"{image.name}{cls.suffix}"]

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """Have `write` write the file `name` below `place`."""
        _save(self._outputs, self.place / name, write)

    def remove_own(self, files: Iterable[Path]) -> None:
        """Remove those of `files` that an earlier run has written of an image of this name."""
        try:
            self._outputs.remove_own(files)
        except OSError as error:
            raise UserError(f"what an earlier run wrote stays in {self.place}: {error.strerror or error}") from None

    def __enter__(self) -> object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _save(outputs: OutputFolder, file: Path, write: Callable[[Path], object]) -> None:
    try:
        with outputs.replacing(file) as part:
            write(part)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None


class OverlayWriter(_OneFileEach):
    """The image with what was found drawn on it, as JPEG where the image is one and as PNG otherwise."""

    folder = "overlays"

    @classmethod
    def files(cls, out: Path, image: InputImage) -> Iterable[Path]:
        return [out / cls.folder / f"{image.name}{'.jpg' if image.path.suffix.lower() in _JPEG else '.png'}"]

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        drawn = Image.fromarray(draw_detections(image(), found))
        if found.path is not None and Path(found.path).suffix.lower() in _JPEG:
            suffix, other, save = ".jpg", ".png", lambda part: drawn.save(part, "JPEG", quality=92)
        else:
            suffix, other, save = ".png", ".jpg", lambda part: drawn.save(part, "PNG")
        self.save(f"{name}{suffix}", save)
        self.remove_own([self.place / f"{name}{other}"])


class LabelWriter(_OneFileEach):
    """16-bit PNG files: the number of the instance at each pixel, the same as in the table."""

    folder = "labels"
    suffix = ".png"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        labels = Image.fromarray(label_image(found))
        self.save(f"{name}.png", lambda part: labels.save(part, "PNG"))


class SemanticWriter(_OneFileEach):
    """PNG files: the number of the class at each pixel, from 1, in 8 bits or, for more than 255 classes, in 16."""

    folder = "semantic"
    suffix = ".png"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        classes = Image.fromarray(semantic_map(found).classes)
        self.save(f"{name}.png", lambda part: classes.save(part, "PNG"))


class GeoJsonWriter(_OneFileEach):
    folder = "polygons"
    suffix = ".geojson"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        text = json.dumps(to_geojson(found)) + "\n"
        self.save(f"{name}.geojson", lambda part: part.write_text(text))


class CutoutWriter(_OneFileEach):
    """A PNG file with transparency for each instance, in a folder for each image."""

    folder = "cutouts"

    @classmethod
    def files(cls, out: Path, image: InputImage) -> Iterable[Path]:
        # How many there will be is not known, but what there is may be in their way.
        return _cutouts(out / cls.folder / image.name)

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        written = set()
        for i, cut in cutouts(image(), found) if len(found) else ():
            label = re.sub(r"[^\w-]+", "_", found.names[i])[:_LABEL_LENGTH]
            picture = Image.fromarray(cut)
            file = f"{name}/{i + 1:04}_{label}.png"
            self.save(file, lambda part, picture=picture: picture.save(part, "PNG"))
            written.add(self.place / file)
        self.remove_own(set(_cutouts(self.place / name)) - written)


def _cutouts(folder: Path) -> Iterable[Path]:
    return folder.glob("[0-9]*_*.png") if is_folder(folder) else ()  # raises for a long name


class _OneFile:
    """A writer of one file for all images, which is there when it is whole."""

    file = ""

    def __init__(self, outputs: OutputFolder, category_ids: Sequence[int], stuff: Stuff = _NO_STUFF) -> None:
        self.place = outputs.root / self.file
        self._outputs, self._ids, self._stuff, self._stack = outputs, category_ids, stuff, ExitStack()

    @classmethod
    def files(cls, out: Path, image: InputImage) -> Iterable[Path]:
        return [out / cls.file]

    def __enter__(self) -> object:
        self._open(self._stack.enter_context(self._outputs.replacing(self.place)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            self._complete()

    def _open(self, part: Path) -> None:
        raise NotImplementedError

    def _complete(self) -> None:
        raise NotImplementedError


class TableWriter(_OneFile):
    """One CSV file, a row for each instance, with the columns that the first image asks for."""

    file = "detections.csv"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        if not self._begun:
            self._begin(column_names(found))
        for row in table_rows(found):
            self._append(row)

    def _open(self, part: Path) -> None:
        self._append = self._stack.enter_context(open_table(part))
        self._begun = False

    def _complete(self) -> None:
        if not self._begun:
            self._begin(COLUMNS)

    def _begin(self, columns: Sequence[str]) -> None:
        self._append(columns)
        self._begun = True


class CocoWriter(_OneFile):
    """One file with COCO's images, categories and annotations, which have scores; also what COCO's tools load."""

    file = "coco.json"

    def _open(self, part: Path) -> None:
        self._images: list[dict[str, object]] = []
        self._categories: list[dict[str, object]] = []
        self._count = 0
        self._file: TextIO = self._stack.enter_context(part.open("w"))
        self._file.write('{"annotations": [')

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        number = self._add_image(name, found)
        self._categories = [{"id": i, "name": n} for i, n in zip(self._ids, found.class_names, strict=True)]
        for result, (mask, _) in zip(found.to_coco(number, self._ids), mask_windows(found), strict=True):
            self._append({"id": self._count + 1} | result | {"area": int(mask.sum()), "iscrowd": 0})

    def _add_image(self, name: str, found: Detections) -> int:
        """Add an image, and return its id."""
        number = len(self._images) + 1
        entry = {"id": number, "file_name": found.path or name, "height": found.height, "width": found.width}
        self._images.append(entry)
        return number

    def _append(self, annotation: Mapping[str, object]) -> None:
        # Written at once: the annotations of many images would fill the memory.
        self._file.write(",\n" if self._count else "\n")
        self._count += 1
        self._file.write(json.dumps(annotation))

    def _complete(self) -> None:
        rest = json.dumps({"images": self._images, "categories": self._categories})
        self._file.write(f"\n],\n{rest[1:]}\n")


class PanopticWriter(CocoWriter):
    """COCO's panoptic format: a PNG file for each image, whose colours number its segments, and one list of them all.

    A model without a semantic head has segments of its instances alone.
    """

    file = "panoptic.json"
    folder = "panoptic"

    @classmethod
    def files(cls, out: Path, image: InputImage) -> Iterable[Path]:
        return [out / cls.file, out / cls.folder / f"{image.name}.png"]

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        numbers, segments = panoptic_map(found, self._stuff.combine)
        colours, entries = to_coco_panoptic(numbers, segments, self._ids, self._stuff.ids)
        picture = Image.fromarray(colours)
        _save(self._outputs, self.place.parent / self.folder / f"{name}.png", lambda part: picture.save(part, "PNG"))
        named = [(self._ids, found.class_names), (self._stuff.ids, self._stuff.names)]
        self._categories = [
            {"id": id_, "name": of_id, "isthing": isthing}
            for isthing, pair in zip((1, 0), named, strict=True)
            for id_, of_id in zip(*pair, strict=True)
        ]
        image_id = self._add_image(name, found)
        self._append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": entries})


FORMATS: dict[str, type[Writer]] = {
    "overlay": OverlayWriter,
    "coco": CocoWriter,
    "csv": TableWriter,
    "labels": LabelWriter,
    "semantic": SemanticWriter,
    "panoptic": PanopticWriter,
    "geojson": GeoJsonWriter,
    "cutouts": CutoutWriter,
}


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"], found: Detections, tracks: Int[np.ndarray, " n"] | None = None
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image with its instances, in the colours of their tracks if they are given; small ones are magnified."""
    keypoints = found.keypoints
    if keypoints is not None:
        # Drawn as visible, or not at all.
        shown = np.where(keypoints[..., 2:] >= DRAWN_KEYPOINT, np.float32(2), np.float32(0))
        keypoints = np.concatenate([keypoints[..., :2], shown], axis=-1)
    return draw_instances(
        image,
        Instances(
            found.boxes,
            found.classes,
            found.rles,
            found.scores,
            found.class_names,
            keypoints=keypoints,
            tracks=tracks,
        ),
    )
