"""Turns COCO annotations, as JSON has them, into records, and counts those that cannot be used.

Mistakes that would spoil a run raise `UserError`; single annotations that cannot be used are left out and counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mask_rcnn_jax.data.records import CocoDataset, Federated, Record
from mask_rcnn_jax.data.records.entries import check_category, flag, is_number, shown, whole
from mask_rcnn_jax.data.records.keypoints import category_keypoints, is_edge, read_keypoints
from mask_rcnn_jax.data.records.masks import Segmentation
from mask_rcnn_jax.data.records.rasterise import polygon
from mask_rcnn_jax.data.records.shards import ShardImage
from mask_rcnn_jax.rle import checked_rle_and_runs

_SHORTEST_SIDE = 1e-4  # pixels: tools round to hundredths or thousandths


class AnnotationReader:
    """Makes records, and counts in `problems` what cannot be used; `examples` has the first case of each.

    `boxes_only` reads no segmentation: every mask is its box. Entries must have passed the checks of `entries`.
    """

    def __init__(self, annotation_file: Path, categories: Sequence[dict[str, Any]], boxes_only: bool = False):
        ordered = sorted(categories, key=lambda category: whole(category, "id"))
        self.file, self.boxes_only = annotation_file, boxes_only
        ids_and_names = [check_category(category) for category in ordered]
        self.categories: tuple[int, ...] = tuple(id_ for id_, _ in ids_and_names)
        self.class_names: tuple[str, ...] = tuple(name for _, name in ids_and_names)
        self.class_of = {category_id: index for index, category_id in enumerate(self.categories)}
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.keypoint_names, edges = category_keypoints(annotation_file, ordered)
        joined = [edge for edge in edges if is_edge(edge, len(self.keypoint_names))]
        self.skeleton: tuple[tuple[int, int], ...] = tuple((first - 1, second - 1) for first, second in joined)
        for edge in edges:
            if edge not in joined:
                self._count("lines of a skeleton that join no two keypoints, left out", shown(edge))

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
            iscrowd=np.array([flag(annotation, "iscrowd") for annotation in kept], bool),
            areas=np.array([self._area(annotation) for annotation in kept], np.float64),
            annotation_ids=np.array([int(annotation["id"]) for annotation in kept], np.int64),
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
        if len(box) == 4 and all(map(is_number, box)):
            x, y, w, h = map(float, box)
            clipped = [max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))]
            if w > 0 and h > 0 and all(_is_side(*clipped[axis::2]) for axis in (0, 1)):
                return clipped
        example = f"annotation {annotation['id']} with bbox {shown(box)}"
        self._count("annotations with a box of no area, left out", example)
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
                rle, runs = checked_rle_and_runs(segmentation, height, width)
                if not runs[1::2].any():
                    raise ValueError("it is empty")
                return rle
            except ValueError as error:
                self._count("annotations with an unusable RLE, left out", f"{name} ({error})")
                return None
        polygons = []
        for points in segmentation if isinstance(segmentation, list) else []:
            try:
                polygons.append(polygon(points))
            except ValueError as error:
                what = "polygons with fewer than 6 or an odd number of coordinates, or broken ones, left out"
                self._count(what, f"in {name} ({error})")
        if not polygons:
            self._count(
                "annotations without a usable polygon, left out (data.source.boxes_only=true keeps their boxes, for a"
                " model without masks)",
                name,
            )
            return None
        return polygons

    def _area(self, annotation: dict[str, Any]) -> float:
        """The annotated area, or that of the box."""
        area, (_, _, width, height) = annotation.get("area"), annotation["bbox"]
        if is_number(area):
            return float(area)
        if area is not None:
            example = f"annotation {annotation['id']} with area {shown(area)}"
            self._count("annotations with an area that is not a number, given that of their box", example)
        return float(width * height)

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


def _is_side(low: float, high: float) -> bool:
    """Tell whether a side has a length that is still there in float32, as boxes are."""
    return bool(high - low >= _SHORTEST_SIDE and np.float32(high) > np.float32(low))
