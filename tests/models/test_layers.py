"""Layers against NumPy, and against XLA's own transposed convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from mask_rcnn_jax.models import NormConfig
from mask_rcnn_jax.models.layers import ConvNorm, Deconv2x2, Kernel, max_pool, over_rois
from mask_rcnn_jax.models.layers.norms import BatchNorm, Frozen, FrozenBatchNorm, freeze
from mask_rcnn_jax.sharding import DATA_AXIS, data_mesh


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


def test_the_scale_of_frozen_batch_norm_is_rounded_once_an_operation():
    # XLA's own reciprocal root is up to four units in the last place off, in a quarter of all channels.
    rng = np.random.default_rng(0)
    scale, var = rng.uniform(0.1, 3, (2, 1000)).astype(np.float32)
    norm = FrozenBatchNorm(1000, epsilon=1e-5)
    norm.scale.set_value(jnp.asarray(scale))
    norm.var.set_value(jnp.asarray(var))
    expected = scale * (np.float32(1) / np.sqrt(var + np.float32(1e-5)))
    found = nnx.jit(lambda norm, x: norm(x))(norm, jnp.ones((1, 1, 1, 1000)))[0, 0, 0]
    np.testing.assert_array_max_ulp(np.asarray(found), expected, maxulp=0 if jax.default_backend() == "cpu" else 4)


def test_epsilon_matters_where_variances_are_small():
    norms = [FrozenBatchNorm(1, epsilon=epsilon) for epsilon in (0.0, 1e-5)]
    for norm in norms:
        norm.var.set_value(jnp.full(1, 1e-5))
    exact, guarded = (float(norm(jnp.ones((1, 1, 1, 1)))[0, 0, 0, 0]) for norm in norms)
    assert exact / guarded == pytest.approx(np.sqrt(2), rel=1e-5)


def batch_norm_over(devices: int, x: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output of a batch norm in training with the rows shared by `devices`, and its variables afterwards."""
    mesh = data_mesh(jax.devices()[:devices])

    def apply(x, counted):
        norm = BatchNorm(x.shape[-1], epsilon=1e-5, momentum=0.9)
        return norm(x, counted), nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))

    specs = (P(DATA_AXIS), P(DATA_AXIS))
    return jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=specs, out_specs=(P(DATA_AXIS), P())))(x, counted)


def test_batch_norm_counts_rows_of_all_devices_alike():
    # Devices count different numbers of rows, where a mean of the devices' means would be wrong.
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (16, 3, 4, 5)).astype(np.float32)
    counted = np.arange(16) % 8 < np.arange(16) // 2
    alone, shared = batch_norm_over(1, x, counted), batch_norm_over(8, x, counted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), alone, shared)
    mean, var = x[counted].mean((0, 1, 2)), x[counted].var((0, 1, 2))
    np.testing.assert_allclose(shared[0], (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-4)


def test_batch_norm_is_torchs(torchvision):
    import torch

    x = np.random.default_rng(1).normal(3, 2, (4, 3, 5, 6)).astype(np.float32)
    reference = torch.nn.BatchNorm2d(6).train()
    expected = reference(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    output, statistics = batch_norm_over(1, x, np.ones(4, bool))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics["mean"], reference.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], reference.running_var.numpy(), rtol=1e-5)


def test_batch_norm_of_nothing_keeps_its_statistics():
    output, statistics = batch_norm_over(1, np.ones((2, 2, 2, 3), np.float32), np.zeros(2, bool))
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(statistics["mean"], 0)
    np.testing.assert_array_equal(statistics["var"], 1)


def test_group_norm_is_torchs(torchvision):
    import torch

    x = np.random.default_rng(2).normal(30, 2, (2, 3, 5, 8)).astype(np.float32)
    layer = NormConfig(kind="group_norm", groups=4).build(8, nnx.Rngs(0))
    expected = torch.nn.GroupNorm(4, 8)(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


def test_layer_norm_is_of_the_channels_of_a_place():
    x = np.random.default_rng(2).normal(30, 2, (2, 3, 5, 8))
    layer = NormConfig(kind="layer_norm", epsilon=0.5).build(8, nnx.Rngs(0))
    centred = x - x.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 0.5)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


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
    layer = ConvNorm(1, 1, Kernel(3, stride=2), norm=NormConfig(kind="none"), rngs=nnx.Rngs(0))
    layer.conv.kernel.set_value(jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0))
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(x)[0, :, :, 0], [[0, 0], [0, 5]])


def test_freeze_hides_parameters_from_training():
    layer = ConvNorm(2, 3, Kernel(3), norm=NormConfig(kind="group_norm", groups=1), rngs=nnx.Rngs(0))
    before = layer(jnp.ones((1, 4, 4, 2)))
    freeze(layer)
    assert not jax.tree.leaves(nnx.state(layer, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(layer, Frozen))) == 3
    np.testing.assert_array_equal(layer(jnp.ones((1, 4, 4, 2))), before)


def test_a_frozen_batch_norm_goes_by_its_running_statistics_in_training():
    norm = NormConfig(kind="batch_norm").build(3, nnx.Rngs(0))
    norm.mean.set_value(jnp.array([1.0, -2.0, 30.0]))
    norm.var.set_value(jnp.array([4.0, 1.0, 0.25]))
    freeze(norm)
    norm.set_attributes(use_running_average=False)  # as training does
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(norm)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    found = norm(x)  # outside a mesh, where statistics of a batch could not be taken
    np.testing.assert_allclose(found, (x - np.array([1, -2, 30])) / np.sqrt([4, 1, 0.25]), rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(norm)), before)


@pytest.mark.parametrize("kind", ["frozen_batch_norm", "batch_norm", "group_norm", "layer_norm"])
def test_norms_replace_the_bias(kind):
    layer = ConvNorm(2, 32, Kernel(1), norm=NormConfig(kind=kind), rngs=nnx.Rngs(0))
    assert layer.conv.bias is None


@pytest.mark.parametrize(("side", "size"), [(3, (8, 8)), (3, (7, 9)), (3, (1, 2)), (2, (8, 8)), (2, (7, 9))])
def test_max_pool_and_its_gradient_are_xlas(side, size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, (2, *size, 3)), jnp.float32)  # so that many maxima are equal

    def expected(x):
        border = ((0, 0), (side - 2, side - 2), (side - 2, side - 2), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 2, 2, 1), border)

    (ours, our_vjp), (theirs, their_vjp) = (
        jax.vjp(jax.jit(pool), x) for pool in (functools.partial(max_pool, side=side), expected)
    )
    np.testing.assert_array_equal(ours, theirs)
    gradient = jnp.asarray(rng.integers(-9, 9, ours.shape), jnp.float32)
    np.testing.assert_array_equal(*our_vjp(gradient), *their_vjp(gradient))


@pytest.mark.parametrize("rois", [3, 64, 70])  # one chunk, two, and three of which the last has padding
def test_rois_and_their_gradients_do_not_depend_on_chunks(rois):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, rois, 7, 7, 5), (5, 4)))
    valid = jnp.arange(rois) < jnp.array([[rois], [2]])

    def total(at_once, x, weights):
        def function(x, _):
            return jnp.tanh(x @ weights)

        result = function(x, valid) if at_once else over_rois(FrozenBatchNorm(1, 0.0), function, valid, x, valid)
        return jnp.sum(jnp.where(valid[..., None, None, None], result, 0) ** 2), result

    of_total = jax.jit(jax.value_and_grad(total, (1, 2), has_aux=True), static_argnums=0)
    (ours, result), gradients = of_total(False, x, weights)
    (expected, of_all), expected_gradients = of_total(True, x, weights)
    for a, b in zip((ours, *gradients), (expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result[valid], of_all[valid], rtol=1e-6, atol=1e-6)
    if rois > 32 and jax.default_backend() == "cpu":
        assert not result[1, -20:].any()  # left out
