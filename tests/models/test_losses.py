"""Elementwise losses against NumPy and SciPy, and their behaviour at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from mask_rcnn_jax.models.losses import Mean, binary_cross_entropy, masked_mean, smooth_l1, softmax_cross_entropy


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1(beta):
    error = np.linspace(-2, 2, 41).astype(np.float32)
    expected = [abs(e) - beta / 2 if abs(e) >= beta else e * e / (2 * beta) for e in error]
    np.testing.assert_allclose(smooth_l1(jnp.asarray(error), beta), expected, atol=1e-6)


def test_binary_cross_entropy_is_stable():
    logits = jnp.array([-1e4, -3.0, 0.0, 3.0, 1e4])
    targets = jnp.array([0.0, 1.0, 0.5, 0.25, 1.0])
    probability = 1 / (1 + np.exp(-np.array([-3.0, 0.0, 3.0])))
    t = np.array([1.0, 0.5, 0.25])
    expected = -(t * np.log(probability) + (1 - t) * np.log(1 - probability))
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), [0, *expected, 0], atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: binary_cross_entropy(x, targets).sum())(logits)).all()


def test_softmax_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 10
    classes = np.array([0, 1, 2, 3, 3, 0], np.int32)
    expected = -log_softmax(logits, axis=1)[np.arange(6), classes]
    np.testing.assert_allclose(softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(classes)), expected, rtol=1e-5)


def test_a_mean_of_nothing_is_zero_with_a_finite_gradient():
    def mean(x):
        return masked_mean(x, jnp.zeros(3, bool)).value

    assert mean(jnp.ones(3)) == 0
    np.testing.assert_array_equal(jax.grad(mean)(jnp.ones(3)), 0)


def test_means_of_unequal_parts_add_up_to_the_mean_of_all():
    x, mask = jnp.arange(10.0), jnp.arange(10) % 3 == 0
    parts = [masked_mean(x[:4], mask[:4]), masked_mean(x[4:], mask[4:])]
    together = jax.tree.map(lambda *p: sum(p), *parts)
    assert isinstance(together, Mean)
    assert together.value == np.mean([0, 3, 6, 9])
