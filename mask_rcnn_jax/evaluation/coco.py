"""COCO's average precision (AP) and recall (AR) of boxes, masks and keypoints, https://cocodataset.org/#detection-eval.

Metrics are named "segm/AP", "segm/AP50", "segm/AP75", "segm/APs" (and m, l: by area), "segm/AR100" (one for each number
of detections), "segm/ARs", "segm/AP/CLASS NAME", and the same with "bbox". Keypoints are compared by their similarity
(OKS, https://cocodataset.org/#keypoints-eval) and have "keypoints/AP", AP50, AP75, APm, APl and, of 20 detections an
image, AR, AR50, AR75, ARm, ARl. All lie in 0..1; NaN where no ground truth decides.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mask_rcnn_jax.data import CocoDataset, Record, to_rle
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation.matching import SparseCOCOeval
from mask_rcnn_jax.inference.results.detections import coco_box, coco_keypoints
from mask_rcnn_jax.ranges import AboveZero, Incidental, Items, Positive, check
from mask_rcnn_jax.rle import area_of

Kind = Literal["bbox", "segm", "keypoints"]
Result = dict[str, Any]  # one detection as COCO's results format has it


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of evaluation."""

    # Per image and class, ascending; AP counts up to the last.
    max_detections: Annotated[tuple[Positive, ...], Items(1)] = (1, 10, 100)
    images_per_device: Annotated[Positive, Incidental()] = 4
    keypoint_sigmas: tuple[AboveZero, ...] | None = None  # spread of each keypoint in OKS; None: those of COCO's 17

    def __post_init__(self) -> None:
        check(self)
        if list(self.max_detections) != sorted({*self.max_detections}):
            raise ValueError(f"max_detections must be ascending, not {self.max_detections}")


def score_coco(
    dataset: CocoDataset, results: Sequence[Result], kind: Kind, config: EvaluationConfig
) -> dict[str, float]:
    """COCO's metrics of COCO results: of their "bbox", their "segmentation" or their "keypoints".

    For keypoints, raises `UserError` where the results have not as many as the dataset, or these have no sigmas.
    """
    return metrics_of(matched(dataset, results, kind, config), kind, dataset.class_names)


def matched(
    dataset: CocoDataset,
    results: Sequence[Result],
    kind: Kind,
    config: EvaluationConfig,
    only_instances_of_any_size: bool = False,
) -> SparseCOCOeval:
    """COCOeval with detections matched to ground truth image by image, for `metrics_of`.

    With `only_instances_of_any_size` those metrics lack what is by area or of fewer detections than AP counts, and
    cost a fraction. Raises `UserError` as `score_coco` does.
    """
    if kind == "keypoints":
        _check_keypoints(dataset, results)
    # COCOeval reports its progress on standard output, which belongs to the command.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = SparseCOCOeval(truth_index(dataset), results_index(dataset, results, kind), kind)
        params: Any = evaluator.params
        if kind == "keypoints":
            params.kpt_oks_sigmas = keypoint_sigmas(dataset, config)
        else:
            params.maxDets = list(config.max_detections)
        if only_instances_of_any_size:
            params.maxDets, params.areaRng, params.areaRngLbl = params.maxDets[-1:], params.areaRng[:1], ["all"]
        evaluator.evaluate()
    return evaluator


def metrics_of(evaluator: SparseCOCOeval, kind: Kind, class_names: Sequence[str]) -> dict[str, float]:
    """The metrics of what `matched` has matched."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    metrics = _summary(evaluator, kind) | _by_class(evaluator, class_names)
    return {f"{kind}/{name}": value for name, value in metrics.items()}


def keypoint_sigmas(dataset: CocoDataset, config: EvaluationConfig) -> Float[np.ndarray, " J"]:
    """The spread of each of the dataset's keypoints; `UserError` where there are not as many as keypoints."""
    coco = Params(iouType="keypoints").kpt_oks_sigmas
    sigmas = coco if config.keypoint_sigmas is None else np.array(config.keypoint_sigmas, np.float64)
    if len(sigmas) != len(dataset.keypoint_names):
        raise UserError(
            f"{dataset.annotation_file} names {len(dataset.keypoint_names)} keypoints but there are {len(sigmas)} "
            "sigmas; set evaluation.keypoint_sigmas to one for each keypoint (COCO's lie from .025 to .107)."
        )
    return sigmas


def _check_keypoints(dataset: CocoDataset, results: Sequence[Result]) -> None:
    count = len(dataset.keypoint_names)
    for result in results:
        if len(result["keypoints"]) != 3 * count:
            raise UserError(
                f"{dataset.annotation_file} names {count} keypoints but the detections have "
                f"{len(result['keypoints']) // 3}; evaluate on annotations with the keypoints the model was trained on."
            )


def truth_index(dataset: CocoDataset) -> COCO:
    """The dataset's annotations as pycocotools wants them."""
    return _index(dataset, [a for record in dataset.records for a in _annotations(record, dataset.categories)])


def results_index(dataset: CocoDataset, results: Sequence[Result], kind: Kind) -> COCO:
    """The detections as pycocotools wants them."""
    return _index(dataset, [_prediction(result, kind) for result in results])


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
        annotation = {
            "image_id": record.image_id,
            "category_id": categories[record.classes[i]],
            "bbox": coco_box(record.boxes[i].tolist()),
            # pycocotools would rasterise polygons itself, whatever their corners cost.
            "segmentation": to_rle(segmentation, record.height, record.width),
            "area": float(record.areas[i]),
            "iscrowd": int(record.iscrowd[i]),
        }
        if record.keypoints is not None:
            annotated = int((record.keypoints[i, :, 2] > 0).sum())
            annotation |= {"keypoints": coco_keypoints(record.keypoints[i]), "num_keypoints": annotated}
        yield annotation


def _prediction(result: Result, kind: Kind) -> dict[str, Any]:
    annotation = {name: result[name] for name in ("image_id", "category_id", "score")} | {"iscrowd": 0}
    if kind == "bbox":
        return annotation | {"bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
    if kind == "keypoints":
        # COCO's results of keypoints have no box: their extent says whether a detection is medium or large.
        sides = np.ptp(np.reshape(result["keypoints"], (-1, 3))[:, :2], axis=0)
        return annotation | {"keypoints": result["keypoints"], "area": float(sides.prod())}
    rle = result["segmentation"]
    # By its mask, not its box, a detection is small, medium or large.
    return annotation | {"segmentation": rle, "area": float(area_of(rle))}


def _summary(evaluator: COCOeval, kind: Kind) -> dict[str, float]:
    """COCOeval's `summarize` would count 100 detections an image for AP, whatever `max_detections` says."""
    # Axes: IoU thresholds, recalls (of precision alone), classes, areas, max_detections.
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    thresholds = np.round(100 * evaluator.params.iouThrs)
    areas = {label[0]: i for i, label in enumerate(evaluator.params.areaRngLbl) if label != "all"}
    metrics = {"AP": mean_of_defined(precision[:, :, :, 0, -1])}
    metrics |= {f"AP{t}": mean_of_defined(precision[thresholds == t][:, :, :, 0, -1]) for t in (50, 75)}
    metrics |= {f"AP{size}": mean_of_defined(precision[:, :, :, area, -1]) for size, area in areas.items()}
    if kind == "keypoints":
        metrics |= {"AR": mean_of_defined(recall[:, :, 0, -1])}
        metrics |= {f"AR{t}": mean_of_defined(recall[thresholds == t][:, :, 0, -1]) for t in (50, 75)}
    else:
        metrics |= {f"AR{n}": mean_of_defined(recall[:, :, 0, i]) for i, n in enumerate(evaluator.params.maxDets)}
    return metrics | {f"AR{size}": mean_of_defined(recall[:, :, area, -1]) for size, area in areas.items()}


def _by_class(evaluator: COCOeval, class_names: Sequence[str]) -> dict[str, float]:
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    return {f"AP/{name}": mean_of_defined(precision[:, :, k]) for k, name in enumerate(class_names)}


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of what is not -1, NaN where all are."""
    defined = values[values > -1]  # COCOeval marks what has no ground truth by -1
    return float(defined.mean()) if defined.size else math.nan
