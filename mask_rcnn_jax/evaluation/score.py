"""The metrics of detections on a dataset: COCO's, or LVIS's where the dataset is LVIS."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import CocoDataset
from mask_rcnn_jax.data.records.entries import shown
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation.coco import EvaluationConfig, Kind, Result, score_coco
from mask_rcnn_jax.evaluation.lvis import score_lvis
from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.inference.results.foreign import check_result
from mask_rcnn_jax.rle import checked_rle


def evaluate(
    dataset: CocoDataset, predictions: Iterable[tuple[int, Detections]], config: EvaluationConfig
) -> tuple[dict[str, float], list[Result]]:
    """The metrics of `predictions` on the whole dataset, and the detections as COCO results.

    Predictions are pairs of an image's id and what was found in it, and are consumed one by one; several processes give
    those of different images, and all get the same. Masks and keypoints are evaluated where all predictions have them,
    and only where the dataset has them too. Raises `UserError` where the number of keypoints differs, or lacks sigmas.
    """
    results, kinds = gather_results(dataset, predictions)
    return score_kinds(dataset, results, kinds, config), results


def gather_results(
    dataset: CocoDataset, predictions: Iterable[tuple[int, Detections]]
) -> tuple[list[Result], list[Kind]]:
    """Consume predictions one by one and return those of all processes as COCO results, and what they can be scored
    by: masks and keypoints where all predictions and the dataset have them.
    """
    results, has_masks, has_keypoints = [], not dataset.boxes_only, bool(dataset.keypoint_names)
    for image_id, found in predictions:
        results += found.to_coco(image_id, dataset.categories)
        has_masks = has_masks and found.rles is not None
        has_keypoints = has_keypoints and found.keypoints is not None
    parts = processes.gather((results, has_masks, has_keypoints))
    kinds: list[Kind] = ["bbox"]
    if all(part[1] for part in parts):
        kinds.append("segm")
    if all(part[2] for part in parts):
        kinds.append("keypoints")
    return [result for part in parts for result in part[0]], kinds


def score_kinds(
    dataset: CocoDataset, results: Sequence[Result], kinds: Iterable[Kind], config: EvaluationConfig
) -> dict[str, float]:
    """Return the metrics of `score_results` for each of `kinds`; the results must be this program's own."""
    metrics: dict[str, float] = {}
    for kind in kinds:
        metrics |= _score(dataset, results, kind, config)
    return metrics


def score_results(
    dataset: CocoDataset, results: Sequence[Result], kind: Kind, config: EvaluationConfig
) -> dict[str, float]:
    """The metrics of COCO results: of their "bbox", their "segmentation" or their "keypoints" (which LVIS has not).

    Raises `UserError` for a result that cannot be evaluated.
    """
    sizes = {record.image_id: (record.height, record.width) for record in dataset.records}
    for index, result in enumerate(results):
        try:
            _check(result, dataset.categories, sizes, kind)
        except ValueError as error:
            raise UserError(f"results[{index}] {error}; correct or remove it.") from None
    return _score(dataset, results, kind, config)


def _score(dataset: CocoDataset, results: Sequence[Result], kind: Kind, config: EvaluationConfig) -> dict[str, float]:
    if dataset.frequencies and kind != "keypoints":
        return score_lvis(dataset, results, kind)
    return score_coco(dataset, results, kind, config)


def _check(result: Any, categories: Sequence[int], sizes: Mapping[Any, tuple[int, int]], kind: Kind) -> None:
    """ValueError with what pycocotools cannot evaluate, or could only by reading out of bounds."""
    check_result(result, categories)
    image_id, key = result.get("image_id"), "segmentation" if kind == "segm" else kind
    if not isinstance(image_id, Hashable) or image_id not in sizes:
        raise ValueError(f"has the unknown image_id {shown(image_id)}")
    if key not in result:
        raise ValueError(f"has no '{key}'")
    if kind == "segm":
        try:
            checked_rle(result["segmentation"], *sizes[image_id])
        except ValueError as error:
            raise ValueError(f"has an RLE that cannot be used: {error}") from None
