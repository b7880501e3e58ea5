"""What `mask-rcnn predict` writes: a writer for each `--format`."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.inference.outputs import COLUMNS, cutouts, label_image, mask_windows, table_rows, to_geojson
from mask_rcnn_jax.visualize import draw_instances

ReadImage = Callable[[], UInt8[np.ndarray, "H W 3"]]

_DRAWN_KEYPOINT = 0.05  # score of a keypoint that is drawn


@runtime_checkable
class Writer(Protocol):
    """Writes what was found in one image after another. Raises OSError where a file cannot be written."""

    def __init__(self, out: Path, category_ids: Sequence[int]) -> None: ...

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        """`name` is a relative path without suffix, unique to the image; `image` reads it."""
        ...

    def close(self) -> None:
        """Completes the files that hold more than one image."""
        ...

    @property
    def place(self) -> Path:
        """The file or folder that it writes."""
        ...


class _OneFileEach:
    """A writer of files of their own for each image."""

    folder = ""

    def __init__(self, out: Path, category_ids: Sequence[int]) -> None:
        self.place = out / self.folder
        self.place.mkdir(parents=True, exist_ok=True)

    def file(self, name: str, suffix: str) -> Path:
        path = self.place / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        pass


class OverlayWriter(_OneFileEach):
    """The image with what was found drawn on it, as JPEG where the image is one and as PNG otherwise."""

    folder = "overlays"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        jpeg = found.path is not None and Path(found.path).suffix.lower() in (".jpg", ".jpeg")
        drawn = Image.fromarray(draw_detections(image(), found))
        if jpeg:
            drawn.save(self.file(name, ".jpg"), quality=92)
        else:
            drawn.save(self.file(name, ".png"))


class LabelWriter(_OneFileEach):
    """16-bit PNG files: the number of the instance at each pixel, the same as in the table."""

    folder = "labels"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        Image.fromarray(label_image(found)).save(self.file(name, ".png"))


class GeoJsonWriter(_OneFileEach):
    folder = "polygons"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        self.file(name, ".geojson").write_text(json.dumps(to_geojson(found)) + "\n")


class CutoutWriter(_OneFileEach):
    """A PNG file with transparency for each instance, in a folder for each image."""

    folder = "cutouts"

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        if not len(found):
            return
        for i, cut in cutouts(image(), found):
            label = re.sub(r"[^\w-]+", "_", found.names[i])
            Image.fromarray(cut).save(self.file(f"{name}/{i + 1:04}_{label}", ".png"))


class TableWriter:
    """One CSV file, a row for each instance."""

    def __init__(self, out: Path, category_ids: Sequence[int]) -> None:
        self.place = out / "detections.csv"
        self._file = open(self.place, "w", newline="")  # noqa: SIM115  closed by `close`
        self._table = csv.writer(self._file)
        self._begun = False

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        self._begin(0 if found.keypoints is None else found.keypoints.shape[1])
        self._table.writerows(table_rows(found))

    def close(self) -> None:
        self._begin(0)
        self._file.close()

    def _begin(self, num_keypoints: int) -> None:
        if not self._begun:
            points = [f"keypoint{k}_{part}" for k in range(1, num_keypoints + 1) for part in ("x", "y", "score")]
            self._table.writerow([*COLUMNS, *points])
        self._begun = True


class CocoWriter:
    """One file with COCO's images, categories and annotations, which have scores; also what COCO's tools load."""

    def __init__(self, out: Path, category_ids: Sequence[int]) -> None:
        self.place = out / "coco.json"
        self._ids = category_ids
        self._images: list[dict[str, object]] = []
        self._categories: list[dict[str, object]] = []
        self._count = 0
        self._file = open(self.place, "w")  # noqa: SIM115  closed by `close`
        self._file.write('{"annotations": [')

    def write(self, name: str, found: Detections, image: ReadImage) -> None:
        number = len(self._images) + 1
        entry = {"id": number, "file_name": found.path or name, "height": found.height, "width": found.width}
        self._images.append(entry)
        self._categories = [{"id": i, "name": n} for i, n in zip(self._ids, found.class_names, strict=True)]
        for result, (mask, _) in zip(found.to_coco(number, self._ids), mask_windows(found), strict=True):
            # Written at once: the annotations of many images would fill the memory.
            self._file.write(",\n" if self._count else "\n")
            self._count += 1
            self._file.write(json.dumps({"id": self._count} | result | {"area": int(mask.sum()), "iscrowd": 0}))

    def close(self) -> None:
        rest = json.dumps({"images": self._images, "categories": self._categories})
        self._file.write(f"\n],\n{rest[1:]}\n")
        self._file.close()


FORMATS: dict[str, type[Writer]] = {
    "overlay": OverlayWriter,
    "coco": CocoWriter,
    "csv": TableWriter,
    "labels": LabelWriter,
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
        shown = np.where(keypoints[..., 2:] >= _DRAWN_KEYPOINT, np.float32(2), np.float32(0))
        keypoints = np.concatenate([keypoints[..., :2], shown], axis=-1)
    return draw_instances(
        image,
        found.boxes,
        found.classes,
        found.rles,
        found.scores,
        found.class_names,
        keypoints=keypoints,
        tracks=tracks,
    )
