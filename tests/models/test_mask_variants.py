"""Masks by a softmax over classes and by fully connected layers, beside plain formulas in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import Feature, Inputs, MaskHeadConfig, MLPMaskHeadConfig, PoolerConfig
from mask_rcnn_jax.models.heads.mask import softmax_mask_losses
from mask_rcnn_jax.pretrained.rows import ByName, match
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs
from tests.programs import count_exact_products

INPUTS = Inputs({"p2": Feature(5, 4)}, 3)
POOLER = PoolerConfig(output_size=4, features=("p2",))
SOFTMAX = MaskHeadConfig(POOLER, num_convs=0, channels=6, mask_loss="softmax")
MLP = MLPMaskHeadConfig(POOLER, fc_channels=7, mask_size=3)
apply = nnx.jit(lambda head, x, classes, valid: head(x, classes, valid))


def built(config):
    """A head of random parameters, and features of six RoIs of two images, of which the last is padding."""
    graph, state = nnx.split(config.build(INPUTS, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    head = nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))
    x = rng.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    return head, x, np.arange(6).reshape(2, 3) < 5


def log_softmax(logits):
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def plain_softmax(head, x):
    """The logarithms of the probabilities of all classes and background, [R, 8, 8, 4]."""
    kernel, bias = np.float64(head.deconv.kernel[...]), np.float64(head.deconv.bias[...])
    up = np.zeros((6, 8, 8, 6))
    for y, column in np.ndindex(8, 8):
        cell = x.reshape(6, 4, 4, 5)[:, y // 2, column // 2].astype(np.float64)
        up[:, y, column] = np.maximum(cell @ kernel[y % 2, column % 2] + bias, 0)
    return log_softmax(up @ np.float64(head.predictor_kernel[...]) + np.float64(head.predictor_bias[...]))


@pytest.mark.parametrize("soft", [False, True])
def test_a_softmax_is_over_classes_and_background(soft):
    head, x, valid = built(SOFTMAX)
    classes = np.array([[0, 2, 1], [1, 3, 0]])  # 3 is background
    logs = np.asarray(apply(head, x, classes, valid)).reshape(6, 8, 8, 2)[:5]
    expected = plain_softmax(head, x)[:5]
    for r, k in enumerate(classes.reshape(-1)[:5]):
        np.testing.assert_allclose(logs[r, ..., 0], expected[r, ..., k], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logs[..., 1], expected[..., 3], rtol=1e-4, atol=1e-4)

    # RoIs 0 and 1 are foreground, their masks the left .6 and the right .3 of every cell's coverage.
    boxes = jnp.tile(jnp.array([[0.0, 0, 32, 32]]), (5, 1))
    coverage = np.zeros((2, 8, 8), np.uint8)
    coverage[0, :, :4], coverage[1, :, 4:] = 153, 76
    truth = GroundTruth(boxes[:2], jnp.array([0, 2]), jnp.asarray(coverage), jnp.ones(2, bool))
    foreground = jnp.array([True, True, False, False, False])
    rois = SampledRoIs(boxes, jnp.array([0, 1, 0, 0, 0]), jnp.array([0, 2, 3, 3, 3]), foreground, jnp.ones(5, bool))
    terms = softmax_mask_losses(replace(SOFTMAX, soft_targets=soft), jnp.asarray(logs), rois, truth)
    shares = coverage / 255 if soft else np.float64(coverage >= 128)
    total, correct = 0.0, 0
    for r, i, j in np.ndindex(2, 8, 8):
        of_class, of_none = expected[r, i, j, (0, 2)[r]], expected[r, i, j, 3]
        total -= shares[r, i, j] * of_class + (1 - shares[r, i, j]) * of_none
        correct += (of_class > np.log(0.5)) == (shares[r, i, j] >= 0.5)
    assert float(terms["loss/mask"].value) == pytest.approx(total / 128, rel=1e-4)
    assert float(terms["mask/accuracy"].value) == pytest.approx(correct / 128)
    np.testing.assert_allclose(head.probabilities(logs[None])[0, 0], np.exp(expected[0, ..., 0]), rtol=1e-4)


@pytest.mark.parametrize("agnostic", [False, True])
def test_fully_connected_layers_make_the_mask_of_the_class(agnostic):
    head, x, valid = built(replace(MLP, class_agnostic=agnostic))
    classes = np.array([[0, 2, 1], [1, 3, 0]])
    logits = np.asarray(apply(head, x, classes, valid)).reshape(6, 3, 3)
    flat = x.reshape(6, -1).astype(np.float64)
    for layer in (head.fc1, head.fc2):
        flat = np.maximum(flat @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...]), 0)
    masks = flat @ np.float64(head.prediction.kernel[...]) + np.float64(head.prediction.bias[...])
    masks = masks.reshape(6, 1 if agnostic else 3, 3, 3)
    for r, k in enumerate(classes.reshape(-1)[:5]):
        expected = masks[r, 0] if agnostic else masks[r, k] if k < 3 else np.zeros((3, 3))
        np.testing.assert_allclose(logits[r], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("config", [SOFTMAX, MLP])
def test_only_layers_round(config):
    """On devices whose products are rounded, the choice of a class's mask is not."""
    head, x, valid = built(config)
    graph, params = nnx.split(head)

    def total(params):
        logits = nnx.merge(graph, params)(jnp.asarray(x), jnp.array([[0, 2, 1], [1, 3, 0]]), jnp.asarray(valid))
        return jnp.sum(logits)

    lowered = jax.jit(jax.grad(total)).trace(params).lower(lowering_platforms=("cuda",))
    assert "scatter" not in lowered.as_text()
    assert count_exact_products(lowered) >= 1


def test_predictors_are_taken_by_the_names_of_classes():
    by_name = ByName(match(("cat", "dog"), ("dog", "cow")))
    kernel = np.arange(6.0).reshape(2, 3)  # of cat, dog and background
    taken = by_name.take("mask_head/predictor_kernel", kernel, np.full((2, 3), -1.0))
    np.testing.assert_array_equal(taken, [[1, -1, 2], [4, -1, 5]])
    taken = by_name.take("mask_head/prediction/bias", np.arange(8.0), np.full(8, -1.0))
    np.testing.assert_array_equal(taken, [4, 5, 6, 7, -1, -1, -1, -1])


def test_a_softmax_is_over_more_than_one_class():
    with pytest.raises(ValueError, match="a softmax is over classes: set class_agnostic=false"):
        replace(SOFTMAX, class_agnostic=True)
