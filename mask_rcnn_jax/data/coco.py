"""Reads a COCO-style directory into records, and says what it could not use.

Mistakes that would spoil a run stop it with a `UserError`; single annotations that cannot be used are left out and
counted in `CocoDataset.problems`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data.config import CocoConfig, ShapesConfig
from mask_rcnn_jax.data.keypoints import category_keypoints, is_edge, read_keypoints
from mask_rcnn_jax.data.masks import Segmentation, run_lengths
from mask_rcnn_jax.data.shapes import prepare_shapes
from mask_rcnn_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Record:
    """One image with its usable annotations, in pixels of the original image as displayed (turned as EXIF says)."""

    image_id: int
    path: str
    height: int
    width: int
    boxes: Float[np.ndarray, "n 4"]  # (x1, y1, x2, y2) of the annotation, clipped to the image
    classes: Int[np.ndarray, " n"]  # 0..K-1
    segmentations: tuple[Segmentation, ...]
    iscrowd: Bool[np.ndarray, " n"]  # regions of many instances: for evaluation only
    areas: Float[np.ndarray, " n"]  # square pixels, as annotated
    annotation_ids: Int[np.ndarray, " n"]
    # (x, y, visibility), pixel index + 0.5, zeros where not annotated; None for a dataset without keypoints
    keypoints: Float[np.ndarray, "n J 3"] | None = None


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """The records of one split, in the file's order, with images that have no annotations."""

    annotation_file: Path
    records: tuple[Record, ...]
    categories: tuple[int, ...]  # category id of class 0..K-1, ascending
    class_names: tuple[str, ...]
    keypoint_names: tuple[str, ...] = ()  # of every instance, such as "left_eye"; none for most datasets
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints, from 0, that a picture joins by a line
    problems: Counter[str] = field(default_factory=Counter)  # what is wrong -> how often
    examples: dict[str, str] = field(default_factory=dict)  # what is wrong -> the first case

    def describe_problems(self) -> list[str]:
        """A line for each kind of problem: how often, and the first case."""
        return [f"{self.annotation_file}: {n} {what}, e.g. {self.examples[what]}" for what, n in self.problems.items()]


def load_coco(config: CocoConfig | ShapesConfig, split: str) -> CocoDataset:
    """Reads `split` of the directory; a `ShapesConfig`'s directory is written first if need be.

    Raises `UserError` for a missing directory or image, an annotation file that is missing, not JSON or lacks keys, and
    annotations that name an unknown image or category. Left out and counted: boxes of no area, polygons with fewer than
    three points or an odd number of coordinates, RLEs that are broken or empty. Images without annotations are kept
    (training drops them, see `DataConfig.keep_empty`) and counted. Instances of unusable keypoints are kept without
    them, and counted.
    """
    if isinstance(config, ShapesConfig):
        prepare_shapes(config)
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"Data directory {root} does not exist; set data.source.root to a COCO-style directory.")
    pattern = config.annotation_file if isinstance(config, CocoConfig) else CocoConfig.annotation_file
    annotation_file = root / "annotations" / pattern.replace("{split}", split)
    content = _read_json(annotation_file)
    image_directory = _image_directory(root, split)
    reader = _AnnotationReader(annotation_file, content["categories"])
    entries = _images_by_id(annotation_file, content["images"])
    annotations: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in entries}
    for annotation in content["annotations"]:
        reader.check(annotation, annotations)
        annotations[annotation["image_id"]].append(annotation)
    records = tuple(
        reader.record(entry, image_directory / entry["file_name"], annotations[image_id])
        for image_id, entry in entries.items()
    )
    _check_present(annotation_file, records)
    return CocoDataset(
        annotation_file=annotation_file,
        records=records,
        categories=reader.categories,
        class_names=reader.class_names,
        keypoint_names=reader.keypoint_names,
        skeleton=reader.skeleton,
        problems=reader.problems,
        examples=reader.examples,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"Annotation file {path} does not exist; put the annotations there or name another split.")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Annotation file {path} is not JSON ({error}); export it again.") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"Annotation file {path} has no list '{key}'; export it in COCO's instances format.")
    return content


def _image_directory(root: Path, split: str) -> Path:
    for directory in (root / split, root / "images" / split):
        if directory.is_dir():
            return directory
    raise UserError(f"Image directory {root / split} does not exist; put the images of split '{split}' there.")


def _images_by_id(annotation_file: Path, images: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for entry in images:
        for key in ("id", "file_name", "height", "width"):
            if key not in entry:
                raise UserError(f"Image {entry.get('id', entry)} in {annotation_file} has no '{key}'; add it.")
        if entry["id"] in entries:
            raise UserError(f"Image id {entry['id']} occurs twice in {annotation_file}; make the ids unique.")
        entries[entry["id"]] = entry
    if not entries:
        raise UserError(f"Annotation file {annotation_file} lists no images; name another split or export it again.")
    return entries


def _check_present(annotation_file: Path, records: Sequence[Record]) -> None:
    missing = [record.path for record in records if not Path(record.path).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more images do" if len(missing) > 1 else " does"
        raise UserError(f"Image {missing[0]}{more} not exist; restore it or remove it from {annotation_file}.")


class _AnnotationReader:
    """Turns annotations into arrays and counts those that cannot be used."""

    def __init__(self, annotation_file: Path, categories: list[dict[str, Any]]):
        for category in categories:
            if "id" not in category or "name" not in category:
                raise UserError(f"Category {category} in {annotation_file} needs an 'id' and a 'name'; add them.")
        ordered = sorted(categories, key=lambda category: category["id"])
        self.file = annotation_file
        self.categories: tuple[int, ...] = tuple(category["id"] for category in ordered)
        self.class_names: tuple[str, ...] = tuple(str(category["name"]) for category in ordered)
        self.class_of = {category_id: index for index, category_id in enumerate(self.categories)}
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        if len(self.class_of) != len(categories):
            raise UserError(f"A category id occurs twice in {annotation_file}; make the ids unique.")
        self.keypoint_names, edges = category_keypoints(annotation_file, ordered)
        joined = [edge for edge in edges if is_edge(edge, len(self.keypoint_names))]
        self.skeleton: tuple[tuple[int, int], ...] = tuple((first - 1, second - 1) for first, second in joined)
        for edge in edges:
            if edge not in joined:
                self._count("lines of a skeleton that join no two keypoints, left out", str(edge))

    def check(self, annotation: dict[str, Any], images: dict[int, Any]) -> None:
        """Raises for an annotation without the keys, or of an unknown image or category."""
        name = f"Annotation {annotation.get('id', annotation)} in {self.file}"
        for key in ("id", "image_id", "category_id", "bbox"):
            if key not in annotation:
                raise UserError(f"{name} has no '{key}'; add it.")
        if annotation["category_id"] not in self.class_of:
            raise UserError(f"{name} has the unknown category_id {annotation['category_id']}; add it to 'categories'.")
        if annotation["image_id"] not in images:
            raise UserError(f"{name} has the unknown image_id {annotation['image_id']}; add the image to 'images'.")

    def record(self, entry: dict[str, Any], path: Path, annotations: list[dict[str, Any]]) -> Record:
        """The record of one image."""
        height, width = int(entry["height"]), int(entry["width"])
        kept, boxes, segmentations = [], [], []
        for annotation in annotations:
            box = self._box(annotation, height, width)
            segmentation = None if box is None else self._segmentation(annotation, height, width)
            if box is not None and segmentation is not None:
                kept.append(annotation)
                boxes.append(box)
                segmentations.append(segmentation)
        if not annotations:
            self._count("images without annotations", str(path))
        return Record(
            image_id=int(entry["id"]),
            path=str(path),
            height=height,
            width=width,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            classes=np.array([self.class_of[annotation["category_id"]] for annotation in kept], np.int32),
            segmentations=tuple(segmentations),
            iscrowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in kept], bool),
            areas=np.array([annotation.get("area", _area(annotation)) for annotation in kept], np.float64),
            annotation_ids=np.array([annotation["id"] for annotation in kept], np.int64),
            keypoints=self._keypoints(kept),
        )

    def _count(self, what: str, example: str) -> None:
        self.problems[what] += 1
        self.examples.setdefault(what, example)

    def _box(self, annotation: dict[str, Any], height: int, width: int) -> list[float] | None:
        box = annotation["bbox"]
        if len(box) == 4 and all(isinstance(value, (int, float)) for value in box):
            x, y, w, h = map(float, box)
            clipped = [max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))]
            if w > 0 and h > 0 and clipped[2] > clipped[0] and clipped[3] > clipped[1]:
                return clipped
        self._count("annotations with a box of no area, left out", f"annotation {annotation['id']} with bbox {box}")
        return None

    def _segmentation(self, annotation: dict[str, Any], height: int, width: int) -> Segmentation | None:
        segmentation, name = annotation.get("segmentation"), f"annotation {annotation['id']}"
        if isinstance(segmentation, dict):
            try:
                return _checked_rle(segmentation, height, width)
            except (ValueError, KeyError, TypeError) as error:
                self._count("annotations with an unusable RLE, left out", f"{name} ({error})")
                return None
        polygons = []
        for points in segmentation or []:
            polygon = np.array(points, np.float64)
            if polygon.size < 6 or polygon.size % 2 or not np.isfinite(polygon).all():
                self._count("polygons with fewer than 6 or an odd number of coordinates, left out", f"in {name}")
            else:
                polygons.append(polygon)
        if not polygons:
            self._count("annotations without a usable polygon, left out", name)
            return None
        return polygons

    def _keypoints(self, annotations: list[dict[str, Any]]) -> Float[np.ndarray, "n J 3"] | None:
        if not self.keypoint_names:
            for annotation in annotations:
                if annotation.get("keypoints"):
                    example = f"annotation {annotation['id']}"
                    self._count("annotations with keypoints that no category names, which are left out", example)
            return None
        keypoints = np.zeros((len(annotations), len(self.keypoint_names), 3), np.float32)
        for row, annotation in enumerate(annotations):
            try:
                if annotation.get("keypoints"):
                    keypoints[row] = read_keypoints(annotation["keypoints"], len(self.keypoint_names))
            except ValueError as error:
                example = f"annotation {annotation['id']} ({error})"
                self._count("annotations with unusable keypoints, which are left out", example)
        return keypoints


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The RLE with compressed bytes as counts; ValueError says what is wrong with it."""
    if list(rle["size"]) != [height, width]:
        raise ValueError(f"its size is {rle['size']}, the image's {[height, width]}")
    counts = rle["counts"]
    if isinstance(counts, list):
        runs, uncompressed = np.array(counts, np.int64), {"size": [height, width], "counts": counts}
        compress: Any = coco_mask.frPyObjects  # its stub leaves uncompressed counts out
        counts = compress(uncompressed, height, width)["counts"] if (runs >= 0).all() else b""
    else:
        counts = counts.encode() if isinstance(counts, str) else bytes(counts)
        runs = run_lengths(counts)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its runs cover {runs.sum()} pixels, the image has {height * width}")
    if runs[1::2].sum() == 0:
        raise ValueError("it is empty")
    return {"size": [height, width], "counts": counts}


def _area(annotation: dict[str, Any]) -> float:
    return float(annotation["bbox"][2] * annotation["bbox"][3])
