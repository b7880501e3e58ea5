"""The region proposal network against NumPy, and its conventions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import RPNConfig
from mask_rcnn_jax.models.proposals import rpn
from mask_rcnn_jax.models.proposals.rpn import level_anchors
from mask_rcnn_jax.structures import GroundTruth

rpn_losses = jax.jit(rpn.rpn_losses, static_argnums=0)
propose = jax.jit(rpn.propose, static_argnums=0, static_argnames="train")

CONFIG = RPNConfig(features=("p2",), sizes=((16.0,),), ratios=(1.0,), samples=8, pre_nms_test=50, post_nms_test=20)


def truth_of(boxes: list[list[float]], slots: int) -> GroundTruth:
    padded = np.zeros((slots, 4), np.float32)
    padded[: len(boxes)] = np.reshape(boxes, (-1, 4))
    valid = np.arange(slots) < len(boxes)
    masks = np.zeros((slots, 2, 2), np.uint8)
    return jax.tree.map(jnp.asarray, GroundTruth(padded, np.zeros(slots, np.int32), masks, valid))


def grid_of_anchors(side: int = 8) -> jax.Array:
    features = {"p2": jnp.zeros((1, side, side, 1))}
    return level_anchors(CONFIG, features, {"p2": 4}, (4 * side, 4 * side))[0]


def test_strides_of_anchors_follow_the_convention():
    config = RPNConfig(features=("p6",), sizes=((512.0,),), ratios=(1.0,))
    features = {"p6": jnp.zeros((1, 13, 21, 1))}  # of an 800 x 1312 image
    corners = {}
    for stride in ("nominal", "grid"):
        anchors = level_anchors(replace(config, anchor_stride=stride), features, {"p6": 64}, (800, 1312))[0]
        corners[stride] = np.asarray(anchors).reshape(13, 21, 4)[-1, -1, :2] + 256
    np.testing.assert_allclose(corners["nominal"], (20 * 64, 12 * 64))
    np.testing.assert_allclose(corners["grid"], (20 * (1312 // 21), 12 * (800 // 13)))


@pytest.mark.parametrize("normalizer", ["constant", "sampled"])
@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_losses_are_those_of_a_plain_loop(normalizer, beta):
    anchors = grid_of_anchors()
    config = replace(CONFIG, normalizer=normalizer, smooth_l1_beta=beta)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=len(anchors)).astype(np.float32)
    deltas = rng.normal(size=(len(anchors), 4)).astype(np.float32)
    gt = np.array([4.0, 6.0, 19.0, 23.0], np.float32)
    truth = truth_of([gt.tolist()], slots=3)
    terms = rpn_losses(
        config, [anchors], jnp.asarray(logits), jnp.asarray(deltas), truth, -jnp.arange(len(anchors), dtype=jnp.float32)
    )

    ious, box_targets = [], []
    for x1, y1, x2, y2 in np.asarray(anchors, np.float64):
        intersection = max(min(x2, gt[2]) - max(x1, gt[0]), 0) * max(min(y2, gt[3]) - max(y1, gt[1]), 0)
        union = (x2 - x1) * (y2 - y1) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - intersection
        ious.append(intersection / union)
        box_targets.append(
            [
                ((gt[0] + gt[2]) - (x1 + x2)) / 2 / (x2 - x1),
                ((gt[1] + gt[3]) - (y1 + y2)) / 2 / (y2 - y1),
                np.log((gt[2] - gt[0]) / (x2 - x1)),
                np.log((gt[3] - gt[1]) / (y2 - y1)),
            ]
        )
    best = max(ious)
    foreground = [i for i, iou in enumerate(ious) if iou >= 0.7 or iou == best][:4]
    background = [i for i, iou in enumerate(ious) if iou < 0.3 and i not in foreground][: 8 - len(foreground)]
    count = len(foreground) + len(background) if normalizer == "sampled" else 8
    objectness = sum(np.log1p(np.exp(-logits[i])) for i in foreground)
    objectness += sum(np.log1p(np.exp(logits[i])) for i in background)
    boxes = 0.0
    for i in foreground:
        for error in np.abs(deltas[i] - np.array(box_targets[i])):
            boxes += error - beta / 2 if error >= beta else error**2 / (2 * beta)
    assert foreground
    assert terms["loss/rpn_objectness"].value == pytest.approx(objectness / count, rel=1e-5)
    assert terms["loss/rpn_box"].value == pytest.approx(boxes / count, rel=1e-5)


def test_an_image_without_instances_learns_background_and_nothing_else():
    anchors = grid_of_anchors()
    zeros = jnp.zeros(len(anchors))

    def loss(logits, deltas):
        terms = rpn_losses(CONFIG, [anchors], logits, deltas, truth_of([], slots=2), zeros)
        return terms["loss/rpn_objectness"].value + terms["loss/rpn_box"].value

    value, (logits, deltas) = jax.value_and_grad(loss, argnums=(0, 1))(zeros, jnp.ones((len(anchors), 4)))
    assert value == pytest.approx(np.log(2), rel=1e-5)
    assert np.count_nonzero(logits) == CONFIG.samples
    assert (np.asarray(logits) >= 0).all()
    np.testing.assert_array_equal(deltas, 0)


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_proposals_are_best_first_inside_the_image_and_apart(threshold):
    anchors, config = grid_of_anchors(), replace(CONFIG, nms_iou=threshold, post_nms_test=50)
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=len(anchors)), jnp.float32)
    deltas = jnp.asarray(rng.normal(size=(len(anchors), 4)) * 0.3, jnp.float32)
    found = propose(config, [anchors], [logits], [deltas], jnp.array([30, 20]), train=False)
    boxes, kept = np.asarray(found.boxes)[found.valid], np.asarray(found.logits)[found.valid]
    assert 0 < len(boxes) <= 50
    assert (np.diff(kept) <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= 20).all()
    assert (boxes[:, [1, 3]] <= 30).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    left_top, right_bottom = (
        np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    intersection = np.prod(np.clip(right_bottom - left_top, 0, None), axis=-1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    iou = intersection / (area[:, None] + area[None] - intersection)
    # As close as the threshold allows, and no closer.
    assert threshold - 0.2 < iou[~np.eye(len(iou), dtype=bool)].max() <= threshold


def suppressed(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        sides = np.minimum(boxes[row, 2:], boxes[kept, 2:]) - np.maximum(boxes[row, :2], boxes[kept, :2])
        intersection = np.prod(np.clip(sides, 0, None), axis=-1)
        areas = np.prod(boxes[[row, *kept], 2:] - boxes[[row, *kept], :2], axis=-1)
        if not np.any(intersection / (areas[0] + areas[1:] - intersection) > threshold):
            kept.append(row)
    return kept


@pytest.mark.parametrize("post_nms", [9, 200])
def test_levels_of_several_sizes_are_suppressed_each_by_itself(post_nms):
    config = replace(CONFIG, features=("a", "b", "c"), sizes=((16.0,),) * 3, nms_iou=0.4, post_nms_test=post_nms)
    anchors = [grid_of_anchors(side) + 64 for side in (8, 1, 3)]  # more than `pre_nms_test`, and fewer
    rng = np.random.default_rng(0)
    logits = [rng.integers(-20, 20, len(level)).astype(np.float32) for level in anchors]  # many are equal
    deltas = [jnp.zeros_like(level) for level in anchors]
    found = propose(config, anchors, logits, deltas, jnp.array([999, 999]), train=False)
    boxes, scores = [], []
    for level, of_level in zip(anchors, logits, strict=True):
        best = np.argsort(-of_level, kind="stable")[: config.pre_nms_test]
        best = best[suppressed(np.asarray(level)[best], of_level[best], 0.4)[:post_nms]]
        boxes.append(np.asarray(level)[best])
        scores.append(of_level[best])
    order = np.argsort(-np.concatenate(scores), kind="stable")[:post_nms]
    assert len(found.valid) == min(post_nms, 50 + 1 + 9)
    np.testing.assert_array_equal(np.asarray(found.logits)[found.valid], np.concatenate(scores)[order])
    np.testing.assert_array_equal(np.asarray(found.boxes)[found.valid], np.concatenate(boxes)[order])


def test_proposals_that_are_not_finite_are_dropped():
    anchors = grid_of_anchors(2)
    logits = jnp.array([3.0, jnp.nan, 1.0, jnp.inf])
    deltas = jnp.zeros((4, 4)).at[2, 0].set(jnp.nan)
    found = propose(CONFIG, [anchors], [logits], [deltas], jnp.array([64, 64]), train=False)
    assert np.asarray(found.logits)[found.valid].tolist() == [3.0]
    assert np.isfinite(found.boxes).all()


def test_no_gradient_flows_through_proposals():
    anchors = grid_of_anchors(4)

    def total(logits, deltas):
        found = propose(CONFIG, [anchors], [logits], [deltas], jnp.array([64, 64]), train=False)
        return found.boxes.sum() + found.logits.sum()

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.arange(16.0), jnp.ones((16, 4)) * 0.1):
        np.testing.assert_array_equal(gradient, 0)
