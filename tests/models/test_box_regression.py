"""Losses of overlapping boxes beside torchvision's, at the edges, and as the RPN and the box head have them."""

from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import BoxHeadConfig, RPNConfig
from mask_rcnn_jax.models.box_regression import box_regression_loss, overlap_loss
from mask_rcnn_jax.models.heads import box
from mask_rcnn_jax.models.proposals import rpn
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs
from tests.conformance.box_losses import KINDS, REFERENCES, pairs_of_boxes, values_and_gradients

box_losses = jax.jit(box.box_losses, static_argnums=0)
rpn_losses = jax.jit(rpn.rpn_losses, static_argnums=0)
decode = jax.jit(box_ops.decode, static_argnums=2)
overlaps = jax.jit(overlap_loss, static_argnums=0)

EMPTY = [  # pairs of which one has none
    ([0, 0, 0, 0], [0, 0, 0, 0]),  # as padded rows are
    ([3, 3, 3, 3], [0, 0, 8, 8]),
    ([0, 0, 8, 8], [3, 3, 3, 3]),
    ([3, 0, 3, 8], [0, 0, 8, 8]),
    ([0, 3, 8, 3], [0, 0, 8, 8]),
    ([3, 3, 3, 3], [3, 3, 3, 3]),
]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_in_float32_are_torchvisions(torchvision: ModuleType, kind):
    """In float64 they are compared in `tests/conformance`, with Detectron2's, too."""
    import torch

    pairs = [boxes.astype(np.float32) for boxes in pairs_of_boxes()]
    theirs = [torch.tensor(boxes, requires_grad=True) for boxes in pairs]
    expected = getattr(torchvision.ops, REFERENCES[kind])(*theirs)
    expected.sum().backward()
    losses, gradients = values_and_gradients(kind, *pairs)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, expected.detach().numpy(), atol=2e-6)
    for gradient, tensor in zip(gradients, theirs, strict=True):
        # A gradient is of the order of one over the box's side.
        scale = np.maximum(1, abs(tensor.grad.numpy()).max(axis=1, keepdims=True))
        np.testing.assert_allclose(gradient / scale, tensor.grad.numpy() / scale, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_boxes_have_finite_losses_and_gradients(kind):
    pairs = [np.array([pair[side] for pair in EMPTY], np.float32) for side in range(2)]
    losses, gradients = values_and_gradients(kind, *pairs)
    assert ((losses >= 0) & (losses <= 3)).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_have_no_loss(kind):
    boxes, _ = pairs_of_boxes()
    losses, _ = values_and_gradients(kind, *[boxes[boxes[:, 2] - boxes[:, 0] > 0.1].astype(np.float32)] * 2)
    np.testing.assert_allclose(losses, 0, atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "smooth_l1"])
def test_boxes_that_do_not_count_have_no_gradient_whatever_they_are(kind):
    config = BoxHeadConfig(box_loss=kind)
    deltas = jnp.array([[0.3, -0.2, 0.1, 0.4], [np.inf, 1, 1, 1], [1, 1, 1e9, 1], [0, 0, 0, 0]])
    references = jnp.array([[0.0, 0, 8, 8], [0, 0, 8, 8], [5, 5, 4, 4], [0, 0, 0, 0]])
    gt_boxes = jnp.array([[1.0, 0, 8, 9], [0, 0, 0, 0], [3, 3, 2, 2], [0, 0, 0, 0]])
    counted = jnp.array([True, False, False, False])

    @jax.jit
    @jax.value_and_grad
    def loss(deltas, references, gt_boxes):
        return box_regression_loss(config, deltas, references, gt_boxes, counted)

    value, gradient = loss(deltas, references, gt_boxes)
    of_zeros = loss(*(jnp.where(counted[:, None], x, 0) for x in (deltas, references, gt_boxes)))
    assert value > 0
    np.testing.assert_array_equal(gradient[1:], 0)
    jax.tree.map(np.testing.assert_array_equal, (value, gradient), of_zeros)


def truth() -> GroundTruth:
    boxes = jnp.array([[4.0, 6, 19, 23], [0, 0, 0, 0]])
    return GroundTruth(boxes, jnp.array([1, 0]), jnp.zeros((2, 2, 2), jnp.uint8), jnp.array([True, False]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_box_head_counts_them_as_it_counts_deltas(kind):
    """The sum over the foreground, of the boxes of its classes, over the number of sampled RoIs, times the weight."""
    config = BoxHeadConfig(samples=8, box_loss=kind, box_loss_weight=2.5)
    boxes = jnp.array([[4.0, 4, 20, 20], [8, 8, 20, 28], [40, 40, 60, 60], [0, 0, 0, 0]])
    foreground, valid = jnp.array([True, True, False, False]), jnp.array([True, True, True, False])
    rois = SampledRoIs(boxes, jnp.zeros(4, int), jnp.array([1, 1, 3, 3]), foreground, valid)
    deltas = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 4)), jnp.float32)
    terms = box_losses(config, jnp.zeros((4, 4)), deltas, rois, truth())
    made = decode(deltas[:2, 1], boxes[:2], config.box_weights)
    of_each = overlaps(kind, made, jnp.tile(truth().boxes[:1], (2, 1)))
    assert float(terms["loss/box"].value) == pytest.approx(2.5 * float(of_each.sum()) / 3, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", ["constant", "sampled"])
def test_the_rpn_counts_them_as_it_counts_deltas(kind, normalizer):
    config = RPNConfig(features=("p2",), sizes=((16.0,),), samples=8, normalizer=normalizer)
    config = replace(config, box_loss=kind, box_loss_weight=0.5)
    anchors = jnp.array([[4.0, 4, 20, 22], [40, 40, 60, 60], [0, 40, 10, 50]])
    deltas = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    terms = rpn_losses(config, [anchors], jnp.zeros(3), deltas, truth(), jnp.zeros(3))
    (loss,) = overlaps(kind, decode(deltas[:1], anchors[:1], config.box_weights), truth().boxes[:1])
    count = 8 if normalizer == "constant" else 3
    assert float(terms["loss/rpn_box"].value) == pytest.approx(0.5 * float(loss) / count, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_teaches_deltas_to_make_the_box(kind):
    """A box that lies apart from its ground truth reaches it by steps along the gradient."""
    config = RPNConfig(box_loss=kind)
    reference, target = jnp.array([[10.0, 10, 30, 30]]), jnp.array([[34.0, 14, 50, 50]])
    step = jax.jit(jax.grad(lambda d: box_regression_loss(config, d, reference, target, jnp.ones(1, bool))))
    deltas = jnp.zeros((1, 4))
    for number in range(600):
        deltas -= 0.2 * 0.99**number * step(deltas)
    made = decode(deltas, reference, config.box_weights)
    assert box_ops.paired_iou(made, target) > 0.95
