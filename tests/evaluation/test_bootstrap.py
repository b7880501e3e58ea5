"""Metrics of draws of the images against datasets that hold the drawn images, scored from scratch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mask_rcnn_jax.data import CocoDataset
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.evaluation.bootstrap import draw_images, resampled_metrics
from mask_rcnn_jax.evaluation.coco import score_coco
from tests.evaluation.scenes import SIDE, dataset_of, detections_in, random_boxes, results_of

CONFIG = EvaluationConfig(max_detections=(1, 2, 5))
IMAGES, CLASSES = 6, 3


@pytest.fixture(scope="module")
def scene() -> tuple[CocoDataset, list[dict[str, Any]]]:
    """Images, not in the order of their ids, and detections beside the truth, many of them of one score."""
    rng = np.random.default_rng(3)
    boxes = [random_boxes(rng, count) for count in (4, 7, 1, 5, 3)] + [[]]  # the last one has no instances
    dataset = dataset_of(boxes, [rng.integers(0, CLASSES, len(one)).tolist() for one in boxes], CLASSES)
    records = [replace(dataset.records[i], image_id=int(image_id)) for i, image_id in enumerate([7, 3, 12, 4, 30, 1])]
    results = []
    for record in records:
        found = np.concatenate([record.boxes, record.boxes[:2], np.array([[5, 5, 60, 50]], np.float32)])
        found = np.clip(found + rng.uniform(-6, 6, found.shape), 0, SIDE).astype(np.float32)
        scores = rng.choice([0.25, 0.5, 0.75, 1.0], len(found)).tolist()
        results += results_of(dataset, detections_in(record, found, scores))
    return replace(dataset, records=tuple(records)), results


def drawn(
    dataset: CocoDataset, results: list[dict[str, Any]], draw: np.ndarray
) -> tuple[CocoDataset, list[dict[str, Any]]]:
    """The dataset and results with the drawn images alone, each copy under an id of its own."""
    chosen = sorted((dataset.records[i] for i in draw.tolist()), key=lambda record: record.image_id)
    copies = tuple(replace(record, image_id=100 + number) for number, record in enumerate(chosen))
    found = [
        result | {"image_id": copy.image_id}
        for record, copy in zip(chosen, copies, strict=True)
        for result in results
        if result["image_id"] == record.image_id
    ]
    return replace(dataset, records=copies), found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_draw_is_scored_as_a_dataset_of_the_images_in_it(scene, kind) -> None:
    dataset, results = scene
    draws = np.concatenate([draw_images(IMAGES, 12, seed=1), [[2] * IMAGES, [5] * IMAGES, range(IMAGES)]])
    whole = score_coco(dataset, results, kind, CONFIG)
    metrics = resampled_metrics(dataset, results, kind, CONFIG, list(whole), draws)
    assert metrics.keys() == whole.keys()
    expected = [score_coco(*drawn(dataset, results, draw), kind, CONFIG) for draw in draws]
    for name, values in metrics.items():
        np.testing.assert_array_equal(values, [one[name] for one in expected], err_msg=name)
        np.testing.assert_array_equal(values[-1], whole[name])
    assert len(set(metrics[f"{kind}/AP"][:12].tolist())) > 6
    assert np.isnan(metrics[f"{kind}/AP"][-2])  # without any instance
    # Those alone that any size and the most detections decide are counted apart, to the same numbers.
    few = [f"{kind}/AP", f"{kind}/AP75", f"{kind}/AP/class 1"]
    for name, values in resampled_metrics(dataset, results, kind, CONFIG, [*few, "keypoints/AP"], draws).items():
        assert name in few
        np.testing.assert_array_equal(values, metrics[name])


def test_draws_are_those_of_their_seed() -> None:
    draws = draw_images(50, 200, seed=4)
    assert draws.shape == (200, 50)
    np.testing.assert_array_equal(draws, draw_images(50, 200, seed=4))
    assert (draws != draw_images(50, 200, seed=5)).any()
    # With replacement, a share of (1 - 1/n)^n of the images is not in a draw.
    absent = np.mean([1 - len(np.unique(draw)) / 50 for draw in draws])
    assert absent == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)
