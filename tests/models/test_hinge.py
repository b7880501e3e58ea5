"""The SVMs of R-CNN: what they learn from and their loss beside loops, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax.models import BoxHeadConfig, HingeConfig
from mask_rcnn_jax.models.heads.classification import (
    class_loss,
    class_scores,
    hinge_candidates,
    predicted_classes,
)
from mask_rcnn_jax.models.heads.second_stage import BoxStages, sample_rois
from mask_rcnn_jax.structures import GroundTruth, Proposals, SampledRoIs

NUM_CLASSES = 3
CONFIG = HingeConfig(hard_negatives=4)
candidates = jax.jit(hinge_candidates, static_argnums=(0, 1))


def scene() -> tuple[SampledRoIs, GroundTruth]:
    """Boxes near and far from four objects, one slot of which is padding, and the objects' own boxes."""
    rng = np.random.default_rng(0)
    objects = np.array([[0, 0, 20, 20], [10, 10, 40, 40], [50, 0, 90, 30], [0, 0, 0, 0]], np.float32)
    classes = np.array([1, 0, 1, 0], np.int32)
    near = np.repeat(objects[:3], 6, axis=0) + rng.uniform(-12, 12, (18, 4)).astype(np.float32)
    corners = np.sort(rng.uniform(0, 90, (10, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    boxes = np.concatenate([objects[:3], near, corners, np.zeros((2, 4), np.float32)])
    truth = GroundTruth(objects, classes, np.zeros((4, 2, 2), np.uint8), np.array([1, 1, 1, 0], bool))
    best = iou_of(boxes, objects)
    best[:, 3] = 0
    label = np.where(best.max(axis=1) >= 0.5, classes[best.argmax(axis=1)], NUM_CLASSES)
    valid = np.arange(len(boxes)) < len(boxes) - 2
    rois = SampledRoIs(boxes, best.argmax(axis=1), label, (label < NUM_CLASSES) & valid, valid)
    return jax.tree.map(jnp.asarray, (rois, truth))


def iou_of(a, b):
    out = np.zeros((len(a), len(b)))
    for i, j in np.ndindex(out.shape):
        low, high = np.maximum(a[i, :2], b[j, :2]), np.minimum(a[i, 2:], b[j, 2:])
        inner = np.prod(np.maximum(high - low, 0.0))
        union = np.prod(a[i, 2:] - a[i, :2]) + np.prod(b[j, 2:] - b[j, :2]) - inner
        out[i, j] = inner / union if union > 0 else 0
    return out


def counted_by_loops(rois: SampledRoIs, truth: GroundTruth) -> np.ndarray:
    iou = iou_of(np.asarray(rois.boxes), np.asarray(truth.boxes))
    counted = np.zeros((len(rois.valid), NUM_CLASSES), bool)
    for r, k in np.ndindex(counted.shape):
        of_class = [iou[r, g] for g in range(4) if truth.valid[g] and truth.classes[g] == k]
        highest = max(of_class, default=0.0)
        is_own = rois.classes[r] == k and highest >= 0.99
        counted[r, k] = rois.valid[r] and (is_own or highest < 0.3)
    return counted


def test_objects_own_boxes_and_those_far_from_a_class_count():
    rois, truth = scene()
    counted = np.asarray(candidates(CONFIG, NUM_CLASSES, rois, truth))
    np.testing.assert_array_equal(counted, counted_by_loops(rois, truth))
    positive = counted & (np.asarray(rois.classes)[:, None] == np.arange(NUM_CLASSES))
    assert positive.sum() == 3
    ignored = np.asarray(rois.valid)[:, None] & ~counted
    assert ignored[:, 0].any()
    assert ignored[:, 1].any()
    assert not ignored[:, 2].any()


def test_the_hardest_negatives_of_each_class_count_once_more():
    rois, truth = scene()
    counted = counted_by_loops(rois, truth)
    rois = jax.tree.map(jnp.asarray, SampledRoIs(**{**vars(rois), "counted_classes": jnp.asarray(counted)}))
    logits = np.random.default_rng(1).normal(size=(len(counted), NUM_CLASSES + 1)).astype(np.float32)
    logits[5:9] = logits[4]  # of equal scores the first
    total, gradient, number = 0.0, np.zeros_like(logits), int(np.sum(rois.valid))
    for k in range(NUM_CLASSES):
        negatives = [r for r in range(len(counted)) if counted[r, k] and rois.classes[r] != k]
        hard = sorted(negatives, key=lambda r: (-logits[r, k], r))[: CONFIG.hard_negatives]
        for r in [*hard, *(r for r in range(len(counted)) if counted[r, k] and rois.classes[r] == k)]:
            sign = 1 if rois.classes[r] == k else -1
            total += max(0.0, 1 - sign * logits[r, k])
            gradient[r, k] = -sign / number if sign * logits[r, k] < 1 else 0
    value, ours = jax.value_and_grad(lambda x: class_loss("hinge", x, rois, CONFIG).value)(jnp.asarray(logits))
    np.testing.assert_allclose(value, total / number, rtol=1e-6)
    np.testing.assert_allclose(ours, gradient, rtol=1e-6, atol=1e-9)
    assert np.count_nonzero(gradient) > 3 * CONFIG.hard_negatives // 2


def test_scores_are_in_the_order_of_margins():
    logits = jnp.array([[-1.0, 0.5, 2.0, 9.0], [-1.0, -0.5, -2.0, 9.0]])  # the last says nothing
    scores = class_scores("hinge", logits)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.asarray(logits))), rtol=1e-6)
    np.testing.assert_array_equal(predicted_classes("hinge", logits), [2, 3])


def test_sampled_rois_say_what_counts():
    """With a foreground of objects alone, all of them are drawn, and nothing that is near them counts."""
    _, truth = scene()
    truth = jax.tree.map(lambda x: x[None], truth)
    boxes = jnp.array([[[1.0, 0, 20, 20], [60, 60, 80, 80], [0, 0, 20, 20], [0, 0, 0, 0]]])
    proposals = Proposals(boxes, jnp.zeros((1, 4)), jnp.array([[True, True, False, False]]))
    config = BoxHeadConfig(samples=12, foreground_fraction=0.5, foreground_iou=0.99, class_loss="hinge", hinge=CONFIG)
    draw = jax.jit(lambda proposals, truth: sample_rois(BoxStages((config,), (), NUM_CLASSES), proposals, truth, None))
    rois = draw(proposals, truth)
    kept = np.asarray(rois.valid[0])
    assert kept.sum() == 5
    np.testing.assert_array_equal(np.asarray(rois.classes[0])[kept], [1, 0, 1, 3, 3])
    counted = [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]]
    np.testing.assert_array_equal(np.asarray(rois.counted_classes[0])[kept], counted)
