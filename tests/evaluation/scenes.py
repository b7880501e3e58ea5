"""Datasets of rectangles, and detections that find them."""

from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn_jax.data import CocoDataset, Record
from mask_rcnn_jax.inference import Detections, encode_masks
from mask_rcnn_jax.rle import RLE

SIDE = 256


def dataset_of(
    boxes: list[list[list[float]]], classes: list[list[int]] | None = None, num_classes: int = 1, **changes
) -> CocoDataset:
    """An image for each list of boxes, whose masks fill them; `changes` replace fields of every record."""
    records = []
    for i, image_boxes in enumerate(boxes):
        array = np.array(image_boxes, np.float32).reshape(-1, 4)
        polygons = tuple([np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float64)] for x1, y1, x2, y2 in array)
        fields = {
            "boxes": array,
            "classes": np.array(classes[i] if classes else [0] * len(array), np.int32),
            "segmentations": polygons,
            "iscrowd": np.zeros(len(array), bool),
            "areas": ((array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])).astype(np.float64),
            "annotation_ids": np.arange(len(array)),  # one of them 0
        }
        records.append(Record(image_id=10 * i, path=f"{i}.png", height=SIDE, width=SIDE, **(fields | changes)))
    # Category ids as datasets have them: from anywhere, with gaps.
    names = tuple(f"class {k}" for k in range(num_classes))
    return CocoDataset(Path("annotations.json"), tuple(records), tuple(range(3, 3 + 2 * num_classes, 2)), names)


def detections_in(
    record: Record, boxes: np.ndarray | list | None = None, scores: list[float] | None = None, masks: bool = True
) -> tuple[int, Detections]:
    """The image's id, and `boxes` or else the record's own, with full masks, of the classes of its first boxes."""
    found = record.boxes if boxes is None else np.array(boxes, np.float32).reshape(-1, 4)
    count = len(found)
    return record.image_id, Detections(
        height=record.height,
        width=record.width,
        boxes=found,
        scores=np.array(scores or np.linspace(0.9, 0.5, count), np.float32),
        classes=np.resize(record.classes, count).astype(np.int32) if len(record.classes) else np.zeros(count, np.int32),
        class_names=(),
        rles=full_masks(found, (record.height, record.width)) if masks else None,
    )


def full_masks(boxes: np.ndarray, size: tuple[int, int]) -> tuple[RLE, ...]:
    """Masks that fill the boxes, as a model's are pasted into an image of `size` (height, width)."""
    return tuple(encode_masks(boxes, np.ones((len(boxes), 28, 28), np.float32), size))


def results_of(dataset: CocoDataset, prediction: tuple[int, Detections]) -> list[dict[str, Any]]:
    """What is found in an image, as COCO results of the dataset's categories."""
    image_id, found = prediction
    return found.to_coco(image_id, dataset.categories)


def random_boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Apart from each other, on a grid of cells 64 px wide."""
    cells = rng.permutation(16)[:count]
    corners = np.stack([cells % 4, cells // 4], axis=1) * 64 + rng.integers(0, 8, (count, 2))
    return np.concatenate([corners, corners + rng.integers(24, 56, (count, 2))], axis=1).astype(float).tolist()
