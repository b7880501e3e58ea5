import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.ops import boxes as box_ops

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(seed, num, extent=100.0):
    corners = np.random.default_rng(seed).uniform(0, extent, (num, 2, 2)).astype(np.float32)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def iou_by_loops(a, b):
    out = np.zeros((len(a), len(b)))
    for i, p in enumerate(a.astype(np.float64)):
        for j, q in enumerate(b.astype(np.float64)):
            width = max(0, min(p[2], q[2]) - max(p[0], q[0]))
            height = max(0, min(p[3], q[3]) - max(p[1], q[1]))
            union = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - width * height
            out[i, j] = width * height / union if union > 0 else 0
    return out


def test_pairwise_iou_agrees_with_loops():
    a, b = random_boxes(0, 17), random_boxes(1, 11)
    np.testing.assert_allclose(box_ops.pairwise_iou(jnp.array(a), jnp.array(b)), iou_by_loops(a, b), atol=1e-6)


def test_pairwise_iou_agrees_with_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    a, b = random_boxes(0, 9), random_boxes(1, 7)
    as_xywh = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], axis=1).astype(np.float64) for x in (a, b)]
    expected = mask.iou(*as_xywh, [0] * len(b))
    np.testing.assert_allclose(box_ops.pairwise_iou(jnp.array(a), jnp.array(b)), expected, atol=1e-6)


def test_padded_rows_overlap_nothing():
    boxes = jnp.concatenate([jnp.array(random_boxes(0, 3)), jnp.zeros((2, 4))])
    iou = box_ops.pairwise_iou(boxes, boxes)
    assert not iou[3:].any()
    assert not iou[:, 3:].any()
    np.testing.assert_array_equal(box_ops.nonempty(boxes), [True, True, True, False, False])


def test_area_of_a_reversed_box_is_zero():
    np.testing.assert_array_equal(box_ops.area(jnp.array([[0.0, 0, 2, 3], [2, 3, 0, 0], [2, 0, 0, 3]])), [6, 0, 0])


def test_clip_takes_height_and_width():
    clipped = box_ops.clip(jnp.array([[-1.0, -2, 50, 60], [3, 4, 5, 6]]), jnp.array([20, 30]))
    np.testing.assert_array_equal(clipped, [[0, 0, 30, 20], [3, 4, 5, 6]])


def test_nonempty_needs_both_sides_above_the_limit():
    boxes = jnp.array([[0.0, 0, 2, 2], [0, 0, 1, 5], [0, 0, 5, 1]])
    np.testing.assert_array_equal(box_ops.nonempty(boxes, 1.0), [True, False, False])


def test_encode_golden():
    # By hand: the reference is 10 x 20 at (5, 10), the box 20 x 20 at (10, 15).
    deltas = box_ops.encode(jnp.array([[0.0, 5, 20, 25]]), jnp.array([[0.0, 0, 10, 20]]), WEIGHTS)
    np.testing.assert_allclose(deltas, [[5, 2.5, 5 * np.log(2), 0]], atol=1e-6)


def test_decode_inverts_encode():
    boxes, references = jnp.array(random_boxes(0, 20)), jnp.array(random_boxes(1, 20))
    deltas = box_ops.encode(boxes, references, WEIGHTS)
    close = jnp.abs(deltas[:, 2:] / 5).max(1) < box_ops.MAX_LOG_SCALE
    np.testing.assert_allclose(box_ops.decode(deltas, references, WEIGHTS)[close], boxes[close], atol=1e-3)


def test_decode_clamps_growth():
    decoded = box_ops.decode(jnp.array([[0.0, 0, 100, 100]]), jnp.array([[0.0, 0, 16, 16]]))
    np.testing.assert_allclose(box_ops.area(decoded), 1000.0**2, rtol=1e-4)


def test_decode_computes_in_float32():
    assert box_ops.decode(jnp.zeros((2, 4), jnp.bfloat16), jnp.array(random_boxes(0, 2))).dtype == jnp.float32


@pytest.mark.parametrize("function", [box_ops.encode, box_ops.decode, box_ops.pairwise_iou])
def test_padded_rows_have_finite_gradients(function):
    a = jnp.concatenate([jnp.array(random_boxes(0, 2)) / 100, jnp.zeros((2, 4))])
    b = jnp.concatenate([jnp.array(random_boxes(1, 1)), jnp.zeros((3, 4))])
    values, gradients = jax.value_and_grad(lambda a, b: function(a, b).sum(), argnums=(0, 1))(a, b)
    assert np.isfinite(values)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
