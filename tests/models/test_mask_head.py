"""The loss of masks against its formula, and masks that are of no class."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import Feature, Inputs, MaskHeadConfig, PoolerConfig
from mask_rcnn_jax.models.heads.mask import mask_losses
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs


@pytest.mark.parametrize(("soft", "target"), [(False, 1.0), (True, 0.6)])
def test_targets_are_thresholded_unless_they_are_soft(soft, target):
    boxes, classes, valid = jnp.array([[0.0, 0, 32, 32]]), jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    truth = GroundTruth(boxes, classes, jnp.full((1, 8, 8), 153, jnp.uint8), boxes, valid)  # 0.6 of every cell
    rois = SampledRoIs(boxes, classes, classes, valid, valid)
    terms = mask_losses(MaskHeadConfig(soft_targets=soft), jnp.full((1, 4, 4), 2.0), rois, truth)
    probability = 1 / (1 + math.exp(-2))
    expected = -target * math.log(probability) - (1 - target) * math.log(1 - probability)
    assert float(terms["loss/mask"].value) == pytest.approx(expected, rel=1e-6)
    assert float(terms["mask/accuracy"].value) == 1


def test_one_channel_for_all_classes_is_a_channel_a_class_with_equal_weights():
    """In its logits, and its gradient is the sum of theirs."""
    inputs = Inputs({name: Feature(6, 2**level) for level, name in enumerate(("p2", "p3", "p4", "p5"), 2)}, 3)
    config = MaskHeadConfig(num_convs=1, channels=8)
    agnostic, specific = (replace(config, class_agnostic=alike).build(inputs, nnx.Rngs(0)) for alike in (True, False))
    assert agnostic.predictor_kernel.shape == (8, 1)
    agnostic.predictor_kernel.set_value(agnostic.predictor_kernel[...] * 1000)
    agnostic.predictor_bias.set_value(jnp.array([0.5]))
    specific.predictor_kernel.set_value(jnp.repeat(agnostic.predictor_kernel[...], 3, axis=1))
    specific.predictor_bias.set_value(jnp.full(3, 0.5))
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(2, 4, *rest)), jnp.float32) for rest in ((7, 7, 6), (14, 14)))
    classes, valid = jnp.array([[0, 1, 2, 2], [1, 1, 0, 0]]), jnp.ones((2, 4), bool)

    @nnx.jit
    def run(head):
        def total(head):
            logits = head(x, classes, valid)
            return jnp.sum(logits * weights), logits

        return nnx.grad(total, has_aux=True)(head)

    (ours, logits), (theirs, expected) = run(agnostic), run(specific)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 0.1
    of_all = theirs["predictor_kernel"][...].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours["predictor_kernel"][...], of_all, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ours["predictor_bias"][...], [theirs["predictor_bias"][...].sum()], rtol=1e-4)
    kernels = (gradients["conv1"]["conv"]["kernel"][...] for gradients in (ours, theirs))
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-3)


def test_a_class_agnostic_head_goes_by_no_class():
    inputs = Inputs({"p2": Feature(6, 4)}, 3)
    config = MaskHeadConfig(
        PoolerConfig(output_size=14, features=("p2",)), num_convs=0, channels=8, class_agnostic=True
    )
    head, x = config.build(inputs, nnx.Rngs(0)), jnp.ones((1, 4, 3, 3, 6))
    valid = jnp.ones((1, 4), bool)
    logits = head(x, jnp.array([[0, 1, 2, 3]]), valid)
    np.testing.assert_array_equal(logits, head(x, jnp.zeros((1, 4), int), valid))
    assert np.asarray(logits).any(axis=(0, 2, 3)).all()
