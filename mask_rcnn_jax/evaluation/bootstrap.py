"""COCO's metrics of other draws of the images: how far they depend on which images there happened to be.

Detections are matched to ground truth image by image, so what one image gives is computed once. Only the order by score
over all images, from which precision and recall follow, is that of each draw.
"""

import copy
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mask_rcnn_jax.data import CocoDataset
from mask_rcnn_jax.evaluation.coco import EvaluationConfig, Kind, Result, matched, metrics_of
from mask_rcnn_jax.evaluation.matching import SparseCOCOeval


def resampled_metrics(
    dataset: CocoDataset,
    results: Sequence[Result],
    kind: Kind,
    config: EvaluationConfig,
    names: Collection[str],
    draws: Int[np.ndarray, "resamples images"],
) -> dict[str, Float[np.ndarray, " resamples"]]:
    """Return those of the metrics `names`, such as "segm/AP", that `kind` has, for each draw of the dataset's images.

    A row of `draws` holds indices into `dataset.records`, an image as often as it was drawn. The results must be this
    program's own, and the dataset not LVIS, whose metrics are others. Raises `UserError` as `score_coco` does.
    """
    evaluator = matched(dataset, results, kind, config, only_instances_of_any_size=True)
    found = metrics_of(evaluator, kind, dataset.class_names).keys()
    if not {name for name in names if name.startswith(f"{kind}/")} <= found:
        evaluator = matched(dataset, results, kind, config)
        found = metrics_of(evaluator, kind, dataset.class_names).keys()
    # COCOeval has the images in the order of their ids, and in that order those of one score are counted.
    place = np.argsort(np.argsort([record.image_id for record in dataset.records]))
    drawn = [metrics_of(_of_images(evaluator, np.sort(place[draw])), kind, dataset.class_names) for draw in draws]
    return {name: np.array([metrics[name] for metrics in drawn]) for name in names if name in found}


def draw_images(count: int, resamples: int, seed: int) -> Int[np.ndarray, "resamples images"]:
    """Draw `count` of `count` images with replacement, `resamples` times; the same for the same numbers."""
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def _of_images(evaluator: SparseCOCOeval, images: Int[np.ndarray, " n"]) -> SparseCOCOeval:
    """Return the evaluator with the images at these places alone, which may be repeated."""
    sample: Any = copy.copy(evaluator)
    count = len(sample.params.imgIds)
    # By class and area, each with all images.
    blocks = range(0, len(sample.evalImgs), count)
    sample.evalImgs = [sample.evalImgs[start + image] for start in blocks for image in images.tolist()]
    sample.params = copy.copy(sample.params)
    sample.params.imgIds = list(range(len(images)))
    sample._paramsEval = sample.params
    return sample
