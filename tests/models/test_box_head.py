"""Sampling of RoIs, box losses and detections, against plain loops."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import BoxHeadConfig, SoftNMSConfig
from mask_rcnn_jax.models.heads import box as box_head
from mask_rcnn_jax.structures import GroundTruth, Proposals, SampledRoIs
from tests.ops.test_soft_nms import plain as plain_soft_nms

box_losses, detect_boxes = (jax.jit(f, static_argnums=0) for f in (box_head.box_losses, box_head.detect_boxes))
sample_rois = jax.jit(box_head.sample_rois, static_argnums=(0, 1))

CONFIG = BoxHeadConfig(samples=8, max_detections=5)


def ground_truth() -> GroundTruth:
    boxes = np.array([[0, 0, 20, 20], [30, 30, 60, 60], [0, 0, 0, 0]], np.float32)
    classes, valid = np.array([2, 0, 0], np.int32), np.array([True, True, False])
    return jax.tree.map(jnp.asarray, GroundTruth(boxes, classes, np.full((3, 2, 2), 255, np.uint8), valid))


def proposals_near_and_far() -> Proposals:
    boxes = np.array(
        [[1, 0, 21, 20], [100, 100, 120, 120], [31, 31, 60, 60], [5, 90, 25, 110], [0, 0, 0, 0], [70, 0, 90, 20]],
        np.float32,
    )
    return Proposals(jnp.asarray(boxes), jnp.zeros(6), jnp.array([True, True, True, True, False, True]))


def test_ground_truth_joins_and_foreground_comes_first():
    priority = -jnp.arange(9.0)
    rois = sample_rois(CONFIG, 3, proposals_near_and_far(), ground_truth(), priority)
    # A quarter of 8 may be foreground: of proposals 0 and 2 and the two ground truths, the first two in priority.
    np.testing.assert_array_equal(rois.foreground, [1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(rois.classes[:2], [2, 0])
    np.testing.assert_array_equal(rois.gt_index[:2], [0, 1])
    assert rois.valid.sum() == 5  # two foreground, three background; the padding proposal is no background
    np.testing.assert_array_equal(rois.classes[2:], 3)
    np.testing.assert_array_equal(np.asarray(rois.boxes)[~np.asarray(rois.valid)], 0)
    without = sample_rois(
        CONFIG, 3, replace(proposals_near_and_far(), valid=jnp.zeros(6, bool)), ground_truth(), priority
    )
    np.testing.assert_array_equal(without.boxes[:2], ground_truth().boxes[:2])


def test_losses_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    rois = sample_rois(CONFIG, 3, proposals_near_and_far(), ground_truth(), -jnp.arange(9.0))
    logits = rng.normal(size=(8, 4)).astype(np.float32)
    deltas = rng.normal(size=(8, 3, 4)).astype(np.float32)
    terms = box_losses(CONFIG, jnp.asarray(logits), jnp.asarray(deltas), rois, ground_truth())
    classification, boxes, count = 0.0, 0.0, 0
    for i in range(8):
        if not rois.valid[i]:
            continue
        count += 1
        label = int(rois.classes[i])
        classification += np.log(np.exp(logits[i]).sum()) - logits[i, label]
        if label < 3:
            (x1, y1, x2, y2), gt = np.asarray(rois.boxes[i]), ground_truth().boxes[int(rois.gt_index[i])]
            target = [
                10 * (gt[0] + gt[2] - x1 - x2) / 2 / (x2 - x1),
                10 * (gt[1] + gt[3] - y1 - y2) / 2 / (y2 - y1),
                5 * np.log((gt[2] - gt[0]) / (x2 - x1)),
                5 * np.log((gt[3] - gt[1]) / (y2 - y1)),
            ]
            boxes += np.abs(deltas[i, label] - target).sum()
    assert terms["loss/box_class"].value == pytest.approx(classification / count, rel=1e-5)
    assert terms["loss/box"].value == pytest.approx(boxes / count, rel=1e-5)


def test_padded_rois_have_no_gradient():
    blank = SampledRoIs(
        jnp.zeros((4, 4)), jnp.zeros(4, jnp.int32), jnp.full(4, 3), jnp.zeros(4, bool), jnp.zeros(4, bool)
    )

    def loss(logits, deltas):
        terms = box_losses(CONFIG, logits, deltas, blank, ground_truth())
        return terms["loss/box_class"].value + terms["loss/box"].value

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.ones((4, 4)), jnp.ones((4, 3, 4)))
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("nms_iou", [0.2, 0.5, 0.8])
def test_detections_are_those_of_a_plain_loop(nms_iou):
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 60, (12, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(8, 40, (12, 2))], 1).astype(np.float32)
    valid = np.arange(12) < 10
    logits = rng.normal(size=(12, 4)).astype(np.float32) * 2
    deltas = rng.normal(size=(12, 3, 4)).astype(np.float32) * 0.5
    config = replace(CONFIG, max_detections=50, nms_iou=nms_iou)
    found = detect_boxes(
        config,
        jax.nn.softmax(jnp.asarray(logits)),
        jnp.asarray(deltas),
        Proposals(jnp.asarray(boxes), jnp.zeros(12), jnp.asarray(valid)),
        jnp.array([70, 80]),
    )
    expected = plain_detections(config, logits, deltas, boxes, valid, (70, 80))
    count = int(found.valid.sum())
    assert count == len(expected) > 5
    assert {label for _, label, _ in expected} == {0, 1, 2}  # the last class too
    for i, (score, label, box) in enumerate(expected):
        assert found.scores[i] == pytest.approx(score, abs=1e-6)
        assert found.classes[i] == label
        np.testing.assert_allclose(found.boxes[i], box, atol=1e-3)
    np.testing.assert_array_equal(found.boxes[count:], 0)


@pytest.mark.parametrize("settings", [SoftNMSConfig(), SoftNMSConfig(decay="linear", min_score=0.1)])
def test_soft_nms_lowers_the_scores_of_what_nms_would_take_away(settings):
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 40, (12, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(8, 40, (12, 2))], 1).astype(np.float32)
    valid = np.arange(12) < 10
    logits = rng.normal(size=(12, 4)).astype(np.float32) * 2
    config = replace(CONFIG, max_detections=50, nms_iou=1.0, soft_nms=settings)
    found = detect_boxes(
        config,
        jax.nn.softmax(jnp.asarray(logits)),
        jnp.zeros((12, 3, 4)),
        Proposals(jnp.asarray(boxes), jnp.zeros(12), jnp.asarray(valid)),
        jnp.array([70, 80]),
    )
    candidates = plain_detections(config, logits, np.zeros((12, 3, 4)), boxes, valid, (70, 80))
    scores, classes, places = (np.array(part) for part in zip(*candidates, strict=True))
    expected = plain_soft_nms(places, scores, np.ones(len(places), bool), classes=classes, **vars(settings))
    assert found.valid.sum() == len(expected) > 5
    assert any(score < scores[row] - 0.01 for row, score in expected)
    for i, (row, score) in enumerate(expected):
        assert found.scores[i] == pytest.approx(score, abs=1e-6)
        assert found.classes[i] == classes[row]
        np.testing.assert_allclose(found.boxes[i], places[row], atol=1e-3)
    for array in (found.boxes, found.scores, found.classes):
        np.testing.assert_array_equal(array[len(expected) :], 0)


def plain_detections(config, logits, deltas, boxes, valid, size):
    """(score, class, box) of every class of every proposal, thresholded, greedily suppressed within the class."""
    candidates = []
    for i in np.flatnonzero(valid):
        scores = np.exp(logits[i].astype(np.float64))
        scores /= scores.sum()
        x1, y1, x2, y2 = boxes[i].astype(np.float64)
        for label in range(3):
            if scores[label] <= config.score_threshold:
                continue
            dx, dy, dw, dh = deltas[i, label] / np.array(config.box_weights)
            width, height = np.exp(dw) * (x2 - x1), np.exp(dh) * (y2 - y1)
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            box = np.clip(box, 0, [size[1], size[0], size[1], size[0]])
            if (box[2:] > box[:2]).all():
                candidates.append((scores[label], label, box))
    kept = []
    for score, label, box in sorted(candidates, key=lambda c: -c[0]):
        if all(other != label or iou(box, chosen) <= config.nms_iou for _, other, chosen in kept):
            kept.append((score, label, box))
    return kept


def iou(a, b):
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return np.prod(sides) / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(sides))
