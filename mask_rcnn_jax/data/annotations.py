"""Turns COCO annotations, as JSON has them, into records, and counts those that cannot be used.

Mistakes that would spoil a run raise `UserError`; single annotations that cannot be used are left out and counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data.keypoints import category_keypoints, is_edge, read_keypoints
from mask_rcnn_jax.data.masks import Segmentation, run_lengths
from mask_rcnn_jax.data.records import CocoDataset, Federated, Record
from mask_rcnn_jax.data.shards import ShardImage


class AnnotationReader:
    """Makes records, and counts in `problems` what cannot be used; `examples` has the first case of each.

    `boxes_only` reads no segmentation: every mask is its box.
    """

    def __init__(self, annotation_file: Path, categories: Sequence[dict[str, Any]], boxes_only: bool = False):
        ordered = sorted(categories, key=lambda category: category["id"])
        self.file, self.boxes_only = annotation_file, boxes_only
        self.categories: tuple[int, ...] = tuple(category["id"] for category in ordered)
        self.class_names: tuple[str, ...] = tuple(str(category["name"]) for category in ordered)
        self.class_of = {category_id: index for index, category_id in enumerate(self.categories)}
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.keypoint_names, edges = category_keypoints(annotation_file, ordered)
        joined = [edge for edge in edges if is_edge(edge, len(self.keypoint_names))]
        self.skeleton: tuple[tuple[int, int], ...] = tuple((first - 1, second - 1) for first, second in joined)
        for edge in edges:
            if edge not in joined:
                self._count("lines of a skeleton that join no two keypoints, left out", str(edge))

    def record(
        self,
        entry: Mapping[str, Any],
        path: Path,
        annotations: Sequence[dict[str, Any]],
        federated: Federated | None = None,
        shard: ShardImage | None = None,
    ) -> Record:
        """The record of one image; `entry` is its own in the file."""
        height, width = int(entry["height"]), int(entry["width"])
        kept, boxes, segmentations = [], [], []
        for annotation in annotations:
            box = self._box(annotation, height, width)
            segmentation = None if box is None else self._segmentation(annotation, box, height, width)
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
            federated=federated,
            shard=shard,
        )

    def dataset(self, records: Sequence[Record], frequencies: Sequence[str] = ()) -> CocoDataset:
        """The dataset of the records made so far, with the problems found in them."""
        return CocoDataset(
            annotation_file=self.file,
            records=records,
            categories=self.categories,
            class_names=self.class_names,
            keypoint_names=self.keypoint_names,
            skeleton=self.skeleton,
            frequencies=tuple(frequencies),
            boxes_only=self.boxes_only,
            problems=self.problems,
            examples=self.examples,
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

    def _segmentation(
        self, annotation: dict[str, Any], box: Sequence[float], height: int, width: int
    ) -> Segmentation | None:
        if self.boxes_only:
            x1, y1, x2, y2 = box
            return [np.array([x1, y1, x2, y1, x2, y2, x1, y2])]
        segmentation, name = annotation.get("segmentation"), f"annotation {annotation['id']}"
        if isinstance(segmentation, dict):
            try:
                return _checked_rle(segmentation, height, width)
            except (ValueError, KeyError, TypeError) as error:
                self._count("annotations with an unusable RLE, left out", f"{name} ({error})")
                return None
        polygons = []
        for points in segmentation or []:
            polygon = _polygon(points)
            if polygon is None:
                self._count("polygons with fewer than 6 or an odd number of coordinates, left out", f"in {name}")
            else:
                polygons.append(polygon)
        if not polygons:
            self._count(
                "annotations without a usable polygon, left out (data.source.boxes_only=true keeps their boxes, for a"
                " model without masks)",
                name,
            )
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


def _polygon(points: Any) -> np.ndarray | None:
    """The coordinates (x1, y1, x2, ...), None where they are no polygon."""
    try:
        polygon = np.array(points, np.float64)
    except (TypeError, ValueError):
        return None
    return polygon if polygon.size >= 6 and polygon.size % 2 == 0 and np.isfinite(polygon).all() else None


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
