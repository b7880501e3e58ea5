"""RoIAlign as it is on a GPU, run on whatever device the tests have."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax import ops
from mask_rcnn_jax.ops import RoIGrid
from mask_rcnn_jax.ops.gpu import roi_align_gather, roi_align_sums

SCALES = (1 / 4, 1 / 8)
IMAGES, BINS = 2, 3


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Fewer rows a kernel: a smaller program, and more of the cells have more rows than that."""
    monkeypatch.setattr(roi_align_sums, "_AT_ONCE", 8)


def scene(dtype="float64"):
    """Two levels of two images, RoIs of all sizes, and a gradient."""
    rng = np.random.default_rng(0)
    maps = tuple(jnp.array(rng.normal(size=(IMAGES, *sides, 2)), dtype) for sides in ((24, 36), (12, 18)))
    corners = rng.uniform(0, [144, 96], (IMAGES, 10, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], axis=-1)
    rois[:, :7] = [
        [0, 0, 144, 96],  # the image
        [142, 93, 144, 96],  # on its corner
        [0, 0, 0, 0],  # padding
        [0, 40, 144, 41],  # thin
        [-30, -20, 40, 50],
        [-300, -300, -200, -250],  # beyond the map
        [50, 20, 50, 80],  # empty
    ]
    levels = jnp.array(rng.integers(0, 2, (IMAGES, len(rois[0]))), jnp.int32)
    gradient = jnp.array(rng.normal(size=(*rois.shape[:2], BINS, BINS, 2)), dtype)
    return maps, jnp.array(rois, dtype), levels, gradient


def in_cells(grid, rois, levels):
    return grid.to_cells(rois, jnp.array(SCALES, rois.dtype)[levels][..., None])


def plain(grid, rois, levels, maps):
    def of_image(rois, levels, *maps):
        every = [ops.roi_align(level, rois, scale, grid) for level, scale in zip(maps, SCALES, strict=True)]
        return jnp.where((levels == 0)[:, None, None, None], *every)

    return jax.vmap(of_image)(rois, levels, *maps)


@partial(jax.jit, static_argnames="grid")
def plain_with_gradient(grid, rois, levels, maps, gradient):
    pooled, back = jax.vjp(partial(plain, grid, rois, levels), maps)
    return pooled, back(gradient)[0]


@partial(jax.jit, static_argnames="grid")
def gpu(grid, rois, levels, maps, gradient):
    cells = in_cells(grid, rois, levels)
    back = roi_align_sums.backward(grid, maps, cells, levels, gradient)
    return roi_align_gather.forward(grid, maps, cells, levels), back


@pytest.mark.parametrize("sampling_ratio", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("aligned", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-13), pytest.param("float32", 2e-5, marks=pytest.mark.slow)]
)
def test_values_and_gradients_are_those_of_the_plain_form(sampling_ratio, aligned, dtype, bound):
    grid = RoIGrid(BINS, sampling_ratio, aligned)
    with jax.enable_x64(dtype == "float64"):
        maps, some, of_some, gradient = scene(dtype)
        of_the_image = jnp.broadcast_to(jnp.array([0.0, 0, 144, 96], dtype), some.shape)
        rooms = []
        for rois, levels in ((some, of_some), (of_the_image, jnp.zeros_like(of_some))):
            taps = roi_align_gather.taps_of(grid, maps, in_cells(grid, rois, levels), levels)
            rooms.append(int(taps.blocks.sum()) <= roi_align_sums._BLOCKS * taps.blocks.size)
            pooled, back = gpu(grid, rois, levels, maps, gradient)
            expected, expected_back = plain_with_gradient(grid, rois, levels, maps, gradient)
            np.testing.assert_allclose(pooled, expected, rtol=0, atol=bound)
            for level, expected_level in zip(back, expected_back, strict=True):
                assert level.dtype == dtype
                np.testing.assert_allclose(level, expected_level, rtol=0, atol=3 * bound)
        # With 8 x 12 cells a bin, of the image, there is no room for all pairs at once.
        assert rooms == [True, False]


def test_runs_of_any_length_are_summed():
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, 4, 5, 0, 300, 16, 17, 0])
    ends = np.cumsum(lengths)
    values, at = rng.integers(-9, 10, (50, 2)), rng.integers(0, 50, ends[-1])
    weights = rng.integers(-9, 10, ends[-1])
    rows = roi_align_sums._Rows(
        jnp.array(values, jnp.float32), jnp.array(at, jnp.int32), jnp.array(weights, jnp.float32)
    )
    runs = roi_align_sums._Runs(jnp.array(ends - lengths, jnp.int32), jnp.array(ends, jnp.int32))
    expected = np.zeros((len(lengths), 2))
    np.add.at(expected, np.repeat(np.arange(len(lengths)), lengths), weights[:, None] * values[at])
    np.testing.assert_array_equal(roi_align_sums._sums(rows, runs, jnp.dtype("float32")), expected)


@pytest.mark.slow
def test_bfloat16_is_read_and_written_but_not_summed():
    grid = RoIGrid(BINS)
    maps, rois, levels, gradient = scene("float32")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (maps, gradient))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    pooled, back = gpu(grid, rois, levels, *narrow)
    expected, expected_back = gpu(grid, rois, levels, *wide)
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(pooled, expected)
    for level, expected_level in zip(back, expected_back, strict=True):
        np.testing.assert_array_equal(level, expected_level.astype(jnp.bfloat16))


def test_a_gpu_takes_no_product_over_maps_and_adds_up_nothing_in_any_order():
    maps, rois, levels, gradient = scene("float32")

    @jax.jit
    def with_gradient(maps, gradient):
        pooled, back = jax.vjp(lambda maps: ops.multilevel_roi_align(maps, rois, levels, SCALES, RoIGrid(BINS)), maps)
        return pooled, back(gradient)

    program = with_gradient.trace(maps, gradient).lower(lowering_platforms=("cuda",)).as_text()
    scatters = program.split('"stablehlo.scatter"')[1:]
    assert scatters
    for scatter in scatters:
        assert re.findall(r"stablehlo\.(\w+)", scatter.partition("stablehlo.return")[0].split("({", 1)[1]) == [
            "maximum"
        ]
    products = re.findall(r"stablehlo\.dot_general.* : \(tensor<(\S+)>, tensor<(\S+)>\)", program)
    assert len(products) == 4  # of the loop over windows, two a level
    assert all("16x" in operands[0] or "x16x" in operands[0] for operands in products)
