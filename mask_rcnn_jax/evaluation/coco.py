"""COCO's average precision (AP) and recall (AR) of boxes and masks, https://cocodataset.org/#detection-eval.

Metrics are named "segm/AP", "segm/AP50", "segm/AP75", "segm/APs" (and m, l: by area), "segm/AR100" (one for each number
of detections), "segm/ARs", "segm/AP/CLASS NAME", and the same with "bbox". They lie in 0..1; NaN where no ground truth
decides.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn_jax.data import CocoDataset, Record
from mask_rcnn_jax.evaluation.matching import SparseCOCOeval
from mask_rcnn_jax.inference import ImageDetections, PasteConvention, encode_masks

Kind = Literal["bbox", "segm"]
Result = dict[str, Any]  # one detection as COCO's results format has it

_AREAS = {"s": 1, "m": 2, "l": 3}  # position of each range of areas in COCOeval's arrays; 0 is all


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are evaluated."""

    max_detections: tuple[int, ...] = (1, 10, 100)  # an image and class; AP counts up to the last
    images_per_device: int = 4

    def __post_init__(self) -> None:
        if not self.max_detections or list(self.max_detections) != sorted({*self.max_detections} - {0}):
            raise ValueError(f"max_detections must be positive and ascending, not {self.max_detections}")
        if self.images_per_device < 1:
            raise ValueError(f"images_per_device must be at least 1, not {self.images_per_device}")


def evaluate(
    dataset: CocoDataset,
    predictions: Iterable[ImageDetections],
    config: EvaluationConfig,
    convention: PasteConvention = "detectron2",
) -> tuple[dict[str, float], list[Result]]:
    """The metrics of `predictions` on the whole dataset, and the detections as COCO results.

    Predictions are consumed one by one. Those without masks are evaluated as boxes only.
    """
    results, has_masks = [], True
    for prediction in predictions:
        results += coco_results(prediction, dataset.categories, convention)
        has_masks = has_masks and prediction.masks is not None
    metrics = score_results(dataset, results, "bbox", config)
    if has_masks:
        metrics |= score_results(dataset, results, "segm", config)
    return metrics, results


def coco_results(
    detections: ImageDetections, categories: Sequence[int], convention: PasteConvention = "detectron2"
) -> list[Result]:
    """Detections of one image as entries of a COCO results file; `categories` are the ids of the classes 0..K-1."""
    results: list[Result] = [
        {"image_id": detections.image_id, "category_id": categories[k], "bbox": _corner_and_sides(*box), "score": score}
        for k, box, score in zip(
            detections.classes.tolist(), detections.boxes.tolist(), detections.scores.tolist(), strict=True
        )
    ]
    if detections.masks is not None:
        for result, rle in zip(results, encode_masks(detections, convention), strict=True):
            result["segmentation"] = rle
    return results


def score_results(
    dataset: CocoDataset, results: Sequence[Result], kind: Kind, config: EvaluationConfig
) -> dict[str, float]:
    """The metrics of COCO results: of their "bbox", or of their "segmentation"."""
    # COCOeval reports its progress on standard output, which belongs to the command.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(dataset, [a for record in dataset.records for a in _annotations(record, dataset.categories)])
        evaluator = SparseCOCOeval(truth, _index(dataset, [_prediction(result, kind) for result in results]), kind)
        evaluator.params.maxDets = list(config.max_detections)
        evaluator.evaluate()
        evaluator.accumulate()
    metrics = _summary(evaluator, config) | _by_class(evaluator, dataset.class_names)
    return {f"{kind}/{name}": value for name, value in metrics.items()}


def _index(dataset: CocoDataset, annotations: list[dict[str, Any]]) -> COCO:
    content: Any = {
        "images": [{"id": r.image_id, "height": r.height, "width": r.width} for r in dataset.records],
        "categories": [{"id": category} for category in dataset.categories],
        # From 1: COCOeval takes the id 0 for "not matched".
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)],
    }
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _annotations(record: Record, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    for i, segmentation in enumerate(record.segmentations):
        x1, y1, x2, y2 = record.boxes[i].tolist()
        rle = isinstance(segmentation, dict)
        yield {
            "image_id": record.image_id,
            "category_id": categories[record.classes[i]],
            "bbox": _corner_and_sides(x1, y1, x2, y2),
            "segmentation": segmentation if rle else [polygon.tolist() for polygon in segmentation],
            "area": float(record.areas[i]),
            "iscrowd": int(record.iscrowd[i]),
        }


def _corner_and_sides(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    # Annotations and files have few decimals. What float32 made of them is undone: an IoU exactly on a threshold has to
    # stay there, or COCO's published values are missed.
    return [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]


def _prediction(result: Result, kind: Kind) -> dict[str, Any]:
    annotation = {name: result[name] for name in ("image_id", "category_id", "score")} | {"iscrowd": 0}
    if kind == "bbox":
        return annotation | {"bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
    rle = result["segmentation"]
    # By its mask, not its box, a detection is small, medium or large.
    return annotation | {"segmentation": rle, "area": float(coco_mask.area(rle))}


def _summary(evaluator: COCOeval, config: EvaluationConfig) -> dict[str, float]:
    """COCOeval's `summarize` would count 100 detections an image for AP, whatever `max_detections` says."""
    # Axes: IoU thresholds, recalls (of precision alone), classes, areas, max_detections.
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    thresholds = np.round(100 * evaluator.params.iouThrs)
    metrics = {"AP": _mean(precision[:, :, :, 0, -1])}
    metrics |= {f"AP{t}": _mean(precision[thresholds == t][:, :, :, 0, -1]) for t in (50, 75)}
    metrics |= {f"AP{size}": _mean(precision[:, :, :, area, -1]) for size, area in _AREAS.items()}
    metrics |= {f"AR{n}": _mean(recall[:, :, 0, i]) for i, n in enumerate(config.max_detections)}
    return metrics | {f"AR{size}": _mean(recall[:, :, area, -1]) for size, area in _AREAS.items()}


def _by_class(evaluator: COCOeval, class_names: Sequence[str]) -> dict[str, float]:
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    return {f"AP/{name}": _mean(precision[:, :, k]) for k, name in enumerate(class_names)}


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]  # COCOeval marks what has no ground truth by -1
    return float(defined.mean()) if defined.size else math.nan
