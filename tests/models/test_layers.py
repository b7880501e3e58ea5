"""Layers against NumPy, and against XLA's own transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import NormConfig
from mask_rcnn_jax.models.layers import ConvNorm, Deconv2x2, Frozen, FrozenBatchNorm, freeze


def test_frozen_batch_norm_is_its_formula():
    rng = np.random.default_rng(0)
    norm = FrozenBatchNorm(5, epsilon=1e-5)
    scale, bias, mean, var = rng.normal(size=(4, 5)).astype(np.float32)
    var = np.abs(var)
    for name, value in zip(("scale", "bias", "mean", "var"), (scale, bias, mean, var), strict=True):
        getattr(norm, name).set_value(jnp.asarray(value))
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_epsilon_matters_where_variances_are_small():
    norms = [FrozenBatchNorm(1, epsilon=epsilon) for epsilon in (0.0, 1e-5)]
    for norm in norms:
        norm.var.set_value(jnp.full(1, 1e-5))
    exact, guarded = (float(norm(jnp.ones((1, 1, 1, 1)))[0, 0, 0, 0]) for norm in norms)
    assert exact / guarded == pytest.approx(np.sqrt(2), rel=1e-5)


def test_deconv_places_each_input_cell_as_a_2x2_block():
    layer = Deconv2x2(3, 4, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.arange(4.0))
    x, kernel = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 6, 3))), np.asarray(layer.kernel[...])
    expected = np.zeros((2, 10, 12, 4), np.float32) + np.arange(4)
    for row in range(5):
        for column in range(6):
            block = np.einsum("bi,yxio->byxo", x[:, row, column], kernel)
            expected[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += block
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_padding_is_half_the_kernel_also_when_striding():
    # XLA's "SAME" would pad (0, 1) for stride 2 on an even side, and shift every feature by half a cell.
    layer = ConvNorm(1, 1, 3, stride=2, norm=NormConfig(kind="none"), rngs=nnx.Rngs(0))
    layer.conv.kernel.set_value(jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0))
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(x)[0, :, :, 0], [[0, 0], [0, 5]])


def test_freeze_hides_parameters_from_training():
    layer = ConvNorm(2, 3, 3, norm=NormConfig(kind="group_norm", groups=1), rngs=nnx.Rngs(0))
    before = layer(jnp.ones((1, 4, 4, 2)))
    freeze(layer)
    assert not jax.tree.leaves(nnx.state(layer, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(layer, Frozen))) == 3
    np.testing.assert_array_equal(layer(jnp.ones((1, 4, 4, 2))), before)


@pytest.mark.parametrize("kind", ["frozen_batch_norm", "batch_norm", "group_norm"])
def test_norms_replace_the_bias(kind):
    layer = ConvNorm(2, 32, 1, norm=NormConfig(kind=kind), rngs=nnx.Rngs(0))
    assert layer.conv.bias is None
