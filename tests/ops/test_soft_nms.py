"""Soft-NMS against a loop that follows the paper's figure 2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mask_rcnn_jax import ops
from tests.ops.test_nms import crowded_boxes, greedy

STATIC = ("max_outputs", "decay", "iou_threshold", "sigma", "min_score")
SETTINGS = {"iou_threshold": 0.3, "sigma": 0.5, "min_score": 0.001}  # the paper's
soft_nms = jax.jit(ops.soft_nms, static_argnames=STATIC)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    overlap = sides[0] * sides[1]
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def plain(boxes, scores, valid, decay, iou_threshold, sigma, min_score, classes=None):
    """The kept rows in order with the scores that they are left with, in float64."""
    boxes = boxes.astype(np.float64)
    left = {row: float(scores[row]) for row in np.flatnonzero(valid)}
    kept = []
    while left:
        best = max(left, key=lambda row: (left[row], -row))
        score = left.pop(best)
        if score <= min_score:
            break
        kept.append((best, score))
        for row in left:
            if classes is not None and classes[row] != classes[best]:
                continue
            overlap = iou(boxes[row], boxes[best])
            if decay == "gaussian":
                left[row] *= np.exp(-(overlap**2) / sigma)
            elif overlap > iou_threshold:
                left[row] *= 1 - overlap
    return kept


def pairs(found) -> list[tuple[int, float]]:
    valid = np.asarray(found.valid)
    return list(zip(np.asarray(found.indices)[valid].tolist(), np.asarray(found.scores)[valid].tolist(), strict=True))


@pytest.mark.parametrize("decay", ["linear", "gaussian"])
@pytest.mark.parametrize("num", [1, 40, 300])
def test_agrees_with_the_papers_loop(num, decay):
    boxes, _, classes = crowded_boxes(num, num)
    rng = np.random.default_rng(1)
    scores = rng.uniform(0, 1, num).astype(np.float32)
    valid = rng.uniform(0, 1, num) < 0.9
    for by_class in (None, classes):
        expected = plain(boxes, scores, valid, decay, **SETTINGS, classes=by_class)
        found = soft_nms(
            *map(jnp.asarray, (boxes, scores, valid)),
            num,
            decay=decay,
            **SETTINGS,
            classes=None if by_class is None else jnp.asarray(by_class),
        )
        assert [row for row, _ in pairs(found)] == [row for row, _ in expected]
        np.testing.assert_allclose([s for _, s in pairs(found)], [s for _, s in expected], atol=1e-6)
        assert num < 300 or len(expected) > len(greedy(boxes, scores, valid, 0.3, by_class))
        np.testing.assert_array_equal(np.asarray(found.scores)[~np.asarray(found.valid)], 0)


def test_scores_come_back_lowered():
    """Boxes of the paper's figure 1: two of one place, and one apart that is scored between them afterwards."""
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]])
    scores, valid = jnp.array([0.95, 0.8, 0.5]), jnp.ones(3, bool)
    linear = soft_nms(boxes, scores, valid, 3, decay="linear", **SETTINGS)
    np.testing.assert_array_equal(linear.indices, [0, 2, 1])
    np.testing.assert_allclose(linear.scores, [0.95, 0.5, 0.8 * 0.2], rtol=1e-6)
    gaussian = soft_nms(boxes, scores, valid, 3, decay="gaussian", **SETTINGS)
    np.testing.assert_array_equal(gaussian.indices, [0, 2, 1])
    np.testing.assert_allclose(gaussian.scores, [0.95, 0.5, 0.8 * np.exp(-(0.8**2) / 0.5)], rtol=1e-6)


def test_the_best_are_kept_and_those_of_no_score_are_not():
    boxes, scores, _ = crowded_boxes(3, 60)
    arguments = (jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(60, bool))
    many = soft_nms(*arguments, 80, decay="gaussian", **SETTINGS)
    assert many.valid.shape == (80,)
    assert 10 < many.valid.sum() <= 60
    few = soft_nms(*arguments, 10, decay="gaussian", **SETTINGS)
    assert pairs(few) == pairs(many)[:10]
    high = soft_nms(*arguments, 60, decay="gaussian", **SETTINGS | {"min_score": 0.3})
    assert pairs(high) == [(row, score) for row, score in pairs(many) if score > 0.3]
    assert pairs(high) != [(row, score) for row, score in pairs(many) if scores[row] > 0.3]


def test_equal_boxes_have_no_score_left_where_the_decay_is_linear():
    boxes, scores = jnp.tile(jnp.array([[1.0, 1, 9, 9]]), (4, 1)), jnp.array([0.5, 0.9, 0.9, 0.1])
    found = soft_nms(boxes, scores, jnp.ones(4, bool), 4, decay="linear", **SETTINGS | {"min_score": 0.0})
    assert pairs(found) == [(1, pytest.approx(0.9))]  # of equal scores the first


def test_padding_changes_nothing_and_there_may_be_nothing_else():
    boxes, scores, classes = crowded_boxes(4, 30)
    alone = soft_nms(
        *map(jnp.asarray, (boxes, scores)), jnp.ones(30, bool), 20, decay="linear", **SETTINGS, classes=classes
    )
    padded = soft_nms(
        jnp.pad(boxes, ((0, 9), (0, 0)), constant_values=7),
        jnp.pad(scores, (0, 9), constant_values=2),
        jnp.arange(39) < 30,
        20,
        decay="linear",
        **SETTINGS,
        classes=jnp.pad(classes, (0, 9)),
    )
    jax.tree.map(np.testing.assert_array_equal, alone, padded)
    for num in (0, 3):
        nothing = soft_nms(jnp.zeros((num, 4)), jnp.ones(num), jnp.zeros(num, bool), 5, decay="gaussian", **SETTINGS)
        assert not nothing.valid.any()
        np.testing.assert_array_equal(nothing.indices, np.zeros(5))


def test_a_batch_and_devices_do_as_one_image_at_a_time():
    images = [crowded_boxes(seed, 40) for seed in (5, 6)]
    boxes, scores, classes = (jnp.stack([jnp.asarray(image[part]) for image in images]) for part in range(3))
    valid = jnp.stack([jnp.arange(40) < 40, jnp.arange(40) < 25])

    def of_image(boxes, scores, valid, classes):
        return soft_nms(boxes, scores, valid, 20, decay="gaussian", **SETTINGS, classes=classes)

    expected = [of_image(*image) for image in zip(boxes, scores, valid, classes, strict=True)]
    batched = jax.vmap(of_image)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    data = PartitionSpec("data")
    on_devices = functools.partial(jax.shard_map, mesh=mesh, in_specs=data, out_specs=data)(batched)
    for run in (batched, on_devices):
        found = jax.jit(run)(boxes, scores, valid, classes)
        np.testing.assert_array_equal(found.indices, np.stack([image.indices for image in expected]))
        np.testing.assert_allclose(found.scores, np.stack([image.scores for image in expected]), rtol=1e-6)
