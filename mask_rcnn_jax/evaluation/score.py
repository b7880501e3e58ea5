"""The metrics of detections on a dataset: COCO's, or LVIS's where the dataset is LVIS."""

from collections.abc import Iterable, Sequence

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import CocoDataset
from mask_rcnn_jax.evaluation.coco import EvaluationConfig, Kind, Result, coco_results, score_coco
from mask_rcnn_jax.evaluation.lvis import score_lvis
from mask_rcnn_jax.inference import ImageDetections, PasteConvention


def evaluate(
    dataset: CocoDataset,
    predictions: Iterable[ImageDetections],
    config: EvaluationConfig,
    convention: PasteConvention = "detectron2",
) -> tuple[dict[str, float], list[Result]]:
    """The metrics of `predictions` on the whole dataset, and the detections as COCO results.

    Predictions are consumed one by one; several processes give those of different images, and all get the same. Masks
    and keypoints are evaluated where all predictions have them, and only where the dataset has them too. Raises
    `UserError` where the number of keypoints differs, or lacks sigmas.
    """
    results, has_masks, has_keypoints = [], not dataset.boxes_only, bool(dataset.keypoint_names)
    for prediction in predictions:
        results += coco_results(prediction, dataset.categories, convention)
        has_masks = has_masks and prediction.masks is not None
        has_keypoints = has_keypoints and prediction.keypoints is not None
    parts = processes.gather((results, has_masks, has_keypoints))
    results = [result for part, *_ in parts for result in part]
    has_masks, has_keypoints = (all(part[index] for part in parts) for index in (1, 2))
    metrics = score_results(dataset, results, "bbox", config)
    if has_masks:
        metrics |= score_results(dataset, results, "segm", config)
    if has_keypoints:
        metrics |= score_results(dataset, results, "keypoints", config)
    return metrics, results


def score_results(
    dataset: CocoDataset, results: Sequence[Result], kind: Kind, config: EvaluationConfig
) -> dict[str, float]:
    """The metrics of COCO results: of their "bbox", their "segmentation" or their "keypoints" (which LVIS has not)."""
    if dataset.frequencies and kind != "keypoints":
        return score_lvis(dataset, results, kind)
    return score_coco(dataset, results, kind, config)
