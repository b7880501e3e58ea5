"""RoIPool beside torchvision, loops of NumPy and Detectron2's golden values; its gradient, its forms, and padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mask_rcnn_jax import ops
from mask_rcnn_jax.models import RoIPoolConfig
from mask_rcnn_jax.ops.pooling.roi_pool import _add_one_by_one, _add_sorted, _Bins, _search, _search_one_by_one
from mask_rcnn_jax.pretrained import read_tensors

SCALE = 1 / 4


@partial(jax.jit, static_argnums=3)
def with_gradient(features, rois, gradient, size):
    """Pooled features, and the gradient of the features given that of the pooled ones."""
    pooled, transpose = jax.vjp(lambda features: ops.roi_pool(features, rois, SCALE, size), features)
    return pooled, transpose(gradient)[0]


def by_loops(features, rois, gradient, size, scale=SCALE):
    """Compute the same as `with_gradient`, in the type of the arguments."""
    height, width, channels = features.shape
    pooled, back = np.zeros((len(rois), size, size, channels), features.dtype), np.zeros_like(features)
    for r, roi in enumerate(rois * rois.dtype.type(scale)):
        # Half away from zero.
        x1, y1, x2, y2 = (int(np.sign(x) * np.floor(np.abs(np.float64(x)) + 0.5)) for x in roi)
        bin_y, bin_x = (rois.dtype.type(max(side, 1)) / rois.dtype.type(size) for side in (y2 - y1 + 1, x2 - x1 + 1))
        for i, j, c in np.ndindex(size, size, channels):
            rows = np.clip([y1 + np.floor(i * bin_y), y1 + np.ceil((i + 1) * bin_y)], 0, height).astype(int)
            columns = np.clip([x1 + np.floor(j * bin_x), x1 + np.ceil((j + 1) * bin_x)], 0, width).astype(int)
            cells = features[slice(*rows), slice(*columns), c]
            if cells.size:
                y, x = np.unravel_index(np.argmax(cells), cells.shape)  # the first of equal ones
                pooled[r, i, j, c] = cells[y, x]
                back[rows[0] + y, columns[0] + x, c] += gradient[r, i, j, c]
    return pooled, back


def by_torchvision(features, rois, gradient, size):
    import torch
    import torchvision

    channels_first = torch.tensor(features.transpose(2, 0, 1)[None], requires_grad=True)
    pooled = torchvision.ops.roi_pool(channels_first, [torch.tensor(rois)], size, SCALE)
    pooled.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))
    assert channels_first.grad is not None
    return pooled.detach().numpy().transpose(0, 2, 3, 1), channels_first.grad[0].numpy().transpose(1, 2, 0)


def hostile(size, dtype, num=200):
    """A map with many equal maxima, RoIs of all kinds on it, and a gradient."""
    rng, sides = np.random.default_rng(size), np.array([27, 20, 27, 20]) * 4
    rois = rng.uniform(-0.3, 1.3, (num, 4)) * sides  # reversed as often as not, and beyond the map
    rois[:50, 2:] = rois[:50, :2] + rng.uniform(0, 6, (50, 2))  # tiny
    rois[50:90] = 4 * np.floor(rois[50:90] / 4) + rng.choice([2, -2], (40, 4))  # half a cell from a whole one
    rois[90:94] *= 30
    rois[94:97] = [[-900, -900, -500, -500], [5000, 9, 6000, 50], [0, 0, 108, 80]]
    rois[97] = np.float32(4 * 0.49999997)  # floor(x + .5) would be a cell too far
    features = np.round(2 * rng.normal(size=(20, 27, 2)))
    return features.astype(dtype), rois.astype(dtype), rng.normal(size=(num, size, size, 2)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [7, 14])
def test_values_and_gradients_are_those_of_torchvision(size, dtype, torchvision):
    arguments = hostile(size, dtype)
    with jax.enable_x64(dtype == "float64"):
        pooled, gradient = with_gradient(*arguments, size)
    expected, expected_gradient = by_torchvision(*arguments, size)
    assert pooled.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients_are_those_of_loops(dtype):
    arguments = hostile(7, dtype)
    with jax.enable_x64(dtype == "float64"):
        pooled, gradient = with_gradient(*arguments, 7)
    expected, expected_gradient = by_loops(*arguments, 7)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)


def test_bins_of_long_rois_are_cut_as_ieee_divides(torchvision):
    # Longer than what NumPy divided: with XLA's product with 1 / 7, some edges lie a cell further.
    features, _, gradient = hostile(7, "float32")
    sides = np.arange(30, 430, 2, dtype=np.float32)
    arguments = features, np.stack([0 * sides, 44 - 4 * sides, 0 * sides + 80, 0 * sides + 40], axis=1), gradient
    np.testing.assert_array_equal(with_gradient(*arguments, 7)[0], by_torchvision(*arguments, 7)[0])


def pyramid(images):
    rng = np.random.default_rng(0)
    maps = [jnp.array(rng.normal(size=(images, *sides, 3)), jnp.float32) for sides in ((20, 27), (10, 14))]
    rois = jnp.array(np.stack([hostile(7, np.float32, 100)[1][:100:5]] * images) * rng.uniform(0.5, 1, (images, 1, 1)))
    return maps, rois.astype(jnp.float32), jnp.array(rng.integers(0, 2, rois.shape[:2]), jnp.int32)


def of_pyramid(maps, rois, levels):
    return ops.multilevel_roi_pool(maps, rois, levels, (1 / 4, 1 / 8), 3)


def test_every_roi_comes_from_its_level_of_its_image():
    maps, rois, levels = pyramid(2)
    pooled = jax.jit(of_pyramid)(maps, rois, levels)
    np.testing.assert_array_equal(jax.jit(jax.vmap(of_pyramid))(maps, rois, levels), pooled)
    for image, index in np.ndindex(2, 2):
        level, here = np.asarray(maps[index][image]), levels[image] == index
        expected, _ = by_loops(level, np.asarray(rois[image]), np.ones((20, 3, 3, 3)), 3, (1 / 4, 1 / 8)[index])
        np.testing.assert_array_equal(pooled[image][here], expected[here])


def test_devices_of_a_mesh_come_to_the_same():
    devices = np.array(jax.devices()[:2])
    maps, rois, levels = pyramid(len(devices))

    def gradient(maps, rois, levels):
        return jax.grad(lambda maps: jnp.sum(of_pyramid(maps, rois, levels) ** 2))(maps)

    data = PartitionSpec("data")
    sharded = jax.shard_map(gradient, mesh=Mesh(devices, ("data",)), in_specs=(data, data, data), out_specs=data)
    operands = maps, rois, levels
    jax.tree.map(np.testing.assert_array_equal, jax.jit(sharded)(*operands), jax.jit(gradient)(*operands))


def test_forms_for_cpu_and_elsewhere_agree():
    """A platform only ever runs one of them."""
    rng = np.random.default_rng(0)
    cells = jnp.array(rng.integers(0, 9, (60, 3)), jnp.float32)
    first_y, first_x = (jnp.array(rng.integers(0, limit, (8, 2)), jnp.int32) for limit in (10, 6))
    stop_y, stop_x = (first + jnp.array(rng.integers(-1, 4, (8, 2)), jnp.int32) for first in (first_y, first_x))
    bins = _Bins(first_y, jnp.minimum(stop_y, 10), first_x, jnp.minimum(stop_x, 6), *jnp.array([[0] * 8, [6] * 8]))
    one_by_one, at_once = (jax.jit(search)(cells, bins) for search in (_search_one_by_one, _search))
    jax.tree.map(np.testing.assert_array_equal, one_by_one, at_once)
    values = jnp.array(rng.integers(-9, 9, (32, 3)), jnp.float32)  # sums in any order are equal
    sums = [
        jax.jit(add, static_argnums=0)(60, at_once[1].reshape(32, 3), values) for add in (_add_one_by_one, _add_sorted)
    ]
    np.testing.assert_array_equal(*sums)
    assert sums[0].any()


def test_padded_rois_are_finite_and_change_nothing():
    maps, rois, levels = pyramid(2)
    padded = jnp.pad(rois, ((0, 0), (0, 3), (0, 0))), jnp.pad(levels, ((0, 0), (0, 3)))
    pooled = jax.jit(of_pyramid)(maps, *padded)
    np.testing.assert_array_equal(pooled[:, :-3], jax.jit(of_pyramid)(maps, rois, levels))
    assert np.isfinite(pooled).all()
    assert of_pyramid(maps, rois[:, :0], levels[:, :0]).shape == (2, 0, 3, 3, 3)


def test_gradients_of_narrow_features_are_added_in_float32():
    features, roi = jnp.zeros((4, 4, 1), jnp.bfloat16), jnp.zeros((600, 4))
    pooled, gradient = with_gradient(features, roi, jnp.ones((600, 1, 1, 1), jnp.bfloat16), 1)
    assert pooled.dtype == gradient.dtype == jnp.bfloat16
    assert gradient[0, 0, 0] == 600  # in bfloat16, 256 + 1 is 256


def test_the_pooler_agrees_with_detectron2(shared):
    tensors = read_tensors(shared / "golden" / "detectron2" / "fast_rcnn.safetensors")
    expected = tensors["box_pooler_first"].transpose(0, 2, 3, 1)
    config = RoIPoolConfig()
    features = {name: jnp.array(tensors[f"feature_{name}"].transpose(0, 2, 3, 1)[:1]) for name in config.features}
    strides = {name: 4 * 2**i for i, name in enumerate(config.features)}
    rois = jnp.array(tensors["proposals_0"][None, : len(expected)])
    np.testing.assert_array_equal(jax.jit(lambda rois: config.pool(features, strides, rois))(rois)[0], expected)
