import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ops import match, match_boxes


def match_by_loops(iou, background, foreground, low_quality):
    labels = []
    for row in iou:
        best = row.max() if len(row) else -1
        label = 1 if best >= foreground else 0 if best < background else -1
        for gt, value in enumerate(row):
            if low_quality and value > 0 and value == iou[:, gt].max():
                label = 1
        labels.append(label)
    return labels


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_loops(seed, low_quality):
    # Rounded, so that ties occur.
    iou = np.random.default_rng(seed).uniform(0, 1, (40, 6)).round(1).astype(np.float32)
    matches = match(jnp.array(iou), jnp.ones(6, bool), 0.3, 0.7, low_quality=low_quality)
    np.testing.assert_array_equal(matches.label, match_by_loops(iou, np.float32(0.3), np.float32(0.7), low_quality))
    np.testing.assert_array_equal(matches.gt_index, iou.argmax(1))


def test_a_low_quality_match_keeps_its_own_argmax():
    # Row 1 is the best that ground truth 0 has, and itself overlaps ground truth 1 more.
    iou = jnp.array([[0.0, 0.9], [0.2, 0.5], [0.1, 0.0]])
    matches = match(iou, jnp.ones(2, bool), low_quality=True)
    np.testing.assert_array_equal(matches.label, [1, 1, 0])
    np.testing.assert_array_equal(matches.gt_index[:2], [1, 1])


def test_ground_truth_that_overlaps_nothing_promotes_nothing():
    matches = match(jnp.array([[0.0, 0.8], [0.0, 0.1]]), jnp.ones(2, bool), low_quality=True)
    np.testing.assert_array_equal(matches.label, [1, 0])


@pytest.mark.parametrize("slots", [0, 3])
def test_without_ground_truth_everything_is_background(slots):
    # 0.9 in a padded column would be a match if it counted.
    matches = match(jnp.full((5, slots), 0.9), jnp.zeros(slots, bool), low_quality=True)
    np.testing.assert_array_equal(matches.label, np.zeros(5))


def test_padding_changes_nothing():
    iou = np.random.default_rng(0).uniform(0, 1, (30, 4)).astype(np.float32)
    plain = match(jnp.array(iou), jnp.ones(4, bool), low_quality=True)
    padded = match(
        jnp.pad(jnp.array(iou), ((0, 3), (0, 2)), constant_values=0.95).at[30:].set(0),
        jnp.arange(6) < 4,
        low_quality=True,
    )
    np.testing.assert_array_equal(padded.label[:30], plain.label)
    np.testing.assert_array_equal(padded.gt_index[:30], plain.gt_index)
    np.testing.assert_array_equal(padded.label[30:], 0)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("slots", [[], [0], [0, 1, 2], [3, 9, 17], range(20)])
def test_boxes_are_matched_as_their_iou_is(slots, low_quality):
    # Of whole pixels, so that ties occur, within a few slots and across them.
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (300, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    boxes, gt_boxes, valid = jnp.array(boxes), jnp.array(boxes[:20]), jnp.isin(jnp.arange(20), jnp.array([*slots, -1]))
    expected = match(box_ops.pairwise_iou(boxes, gt_boxes), valid, low_quality=low_quality)
    found = jax.jit(match_boxes, static_argnames="low_quality")(boxes, gt_boxes, valid, low_quality=low_quality)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.gt_index, expected.gt_index)


def test_no_slots_of_ground_truth_make_all_boxes_background():
    matches = match_boxes(jnp.ones((5, 4)), jnp.zeros((0, 4)), jnp.zeros(0, bool), low_quality=True)
    np.testing.assert_array_equal(matches.label, np.zeros(5))
