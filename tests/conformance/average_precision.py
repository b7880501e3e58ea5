"""COCO's AP of the same weights on the same images through torchvision and through this project.

Each program has its own way from the files to detections in original pixels. Only the canvas is agreed on: what pads an
image changes the features at its border, in both programs, so both pad every image to the same square.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from mask_rcnn_jax.data import CocoConfig, CocoDataset, DataConfig, Record, read_image
from mask_rcnn_jax.evaluation import EvaluationConfig, evaluate_model, score_results
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from tests.conformance import reference
from tests.conformance.rows import Row
from tests.conformance.sources import SOURCES, build, dataset, imported

SOURCE = "torchvision maskrcnn v1, narrow, AP"
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")
SHORT_SIDE, CANVAS = 192, 256  # pixels; the canvas is a multiple of 32
NUM_IMAGES = 20


def rows() -> list[Row]:
    """AP of random weights; their own detections, moved about, are the ground truth, since with any other AP is 0."""
    source = replace(SOURCES["torchvision maskrcnn v1, narrow"], short_side=SHORT_SIDE, max_side=CANVAS)
    val = dataset(source.data)
    val = replace(val, records=val.records[:NUM_IMAGES], categories=val.categories[: source.config.num_classes])
    val = replace(val, class_names=val.class_names[: source.config.num_classes])
    model = build(source, tuple(read_image(record.path) for record in val.records[:3]))
    results = list(reference_results(model, val))
    truth = replace(val, records=tuple(_moved(record, val, results) for record in val.records))
    return difference_rows(
        SOURCE, score(truth, results), evaluated(source.config, imported(source.config, model), truth)
    )


def difference_rows(source: str, expected: dict[str, float], found: dict[str, float]) -> list[Row]:
    return [
        Row(
            source,
            "average precision",
            f"{metric} (the reference's is {expected[metric]:.3f})",
            abs(found[metric] - expected[metric]),
            5e-4,
            "absolute",
        )
        for metric in METRICS
    ]


@torch.no_grad()
def reference_results(model: nn.Module, val: CocoDataset) -> Iterator[dict[str, Any]]:
    """torchvision's detections as entries of a COCO results file, image by image."""
    model.transform.size_divisible = CANVAS
    for record in val.records:
        (found,) = model(reference.tensors([read_image(record.path)]))
        for box, score, label, mask in zip(
            *(found[key] for key in ("boxes", "scores", "labels", "masks")), strict=True
        ):
            rle = coco_mask.encode(np.asfortranarray(mask[0].numpy() > 0.5))
            x1, y1, x2, y2 = box.tolist()
            yield {
                "image_id": record.image_id,
                "category_id": val.categories[label.item() - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score.item(),
                "segmentation": rle | {"counts": rle["counts"].decode()},
            }


def score(val: CocoDataset, results: list[dict[str, Any]]) -> dict[str, float]:
    evaluation = EvaluationConfig()
    return score_results(val, results, "bbox", evaluation) | score_results(val, results, "segm", evaluation)


def evaluated(config: MaskRCNNConfig, variables: Variables, val: CocoDataset) -> dict[str, float]:
    """This project's metrics of a model of torchvision's."""
    data = DataConfig(
        source=CocoConfig(root=str(val.annotation_file.parent.parent)),
        resize="torchvision",
        short_side_eval=SHORT_SIDE,
        max_side=CANVAS,
        canvas=(CANVAS, CANVAS),
    )
    return evaluate_model(config, data, EvaluationConfig(), variables, val).metrics


def _moved(record: Record, val: CocoDataset, results: list[dict[str, Any]]) -> Record:
    """The record with every second detection as ground truth, moved and stretched by up to an eighth of its side."""
    random, boxes, classes, rles = np.random.default_rng(record.image_id), [], [], []
    found = [result for result in results if result["image_id"] == record.image_id]
    for result in found[::2]:
        x, y, width, height = result["bbox"]
        shift = random.uniform(-0.12, 0.12, 4)
        box = np.array([x, y, x + width, y + height]) + shift * [width, height, width, height]
        bitmap = coco_mask.decode(result["segmentation"])
        moved = np.roll(bitmap, (round(shift[1] * height / 4), round(shift[0] * width / 4)), axis=(0, 1))
        if moved.any():
            boxes.append(np.clip(box, 0, [record.width, record.height] * 2))
            classes.append(val.categories.index(result["category_id"]))
            rles.append(coco_mask.encode(np.asfortranarray(moved)))
    count = len(boxes)
    return replace(
        record,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array(classes, np.int32),
        segmentations=tuple(rles),
        iscrowd=np.zeros(count, bool),
        areas=np.array([coco_mask.area(rle) for rle in rles], np.float64),
        annotation_ids=np.arange(1, count + 1),
    )
