"""RoIAlign with maxima beside loops of NumPy: values, and gradients to the first of equal samples."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.ops import RoIGrid, multilevel_roi_align
from mask_rcnn_jax.ops.pooling import roi_align_max
from mask_rcnn_jax.ops.pooling.roi_align_max import _search

SCALES = (1 / 4, 1 / 8)


@partial(jax.jit, static_argnums=4)
def with_gradient(maps, rois, levels, gradient, grid):
    """Pooled features, and the gradient of the maps given that of the pooled ones."""
    pool = partial(multilevel_roi_align, rois=rois, levels=levels, spatial_scales=SCALES, grid=grid, reduction="max")
    pooled, transpose = jax.vjp(pool, maps)
    return pooled, transpose(gradient)[0]


def taps(at, length):
    """The cells around a position and their weights; none beyond the map."""
    if at < -1 or at > length:
        return []
    at = min(max(at, 0), length - 1)
    low = int(at)
    return [(low, low + 1 - at), (min(low + 1, length - 1), at - low)]


def by_loops(maps, rois, levels, gradient, grid):
    """Compute the same as `with_gradient` for one image, in float64."""
    size, back = grid.output_size, [np.zeros(level.shape) for level in maps]
    pooled = np.zeros((len(rois), size, size, maps[0].shape[-1]))
    for r, level in enumerate(levels):
        features = maps[level].astype(np.float64)
        x1, y1, x2, y2 = rois[r].astype(np.float64) * SCALES[level] - 0.5
        sides = (y2 - y1) / size, (x2 - x1) / size
        counts = [grid.sampling_ratio or math.ceil(side) for side in sides]
        for i, j, c in np.ndindex(size, size, features.shape[-1]):
            best, places = -np.inf, []
            for a, b in np.ndindex(*counts):
                y = taps(y1 + (i + (a + 0.5) / counts[0]) * sides[0], features.shape[0])
                x = taps(x1 + (j + (b + 0.5) / counts[1]) * sides[1], features.shape[1])
                around = [(cell_y, cell_x, wy * wx) for cell_y, wy in y for cell_x, wx in x]
                value = sum(features[cell_y, cell_x, c] * weight for cell_y, cell_x, weight in around)
                if value > best:
                    best, places = value, around
            pooled[r, i, j, c] = max(best, -1e30) if min(counts) else 0
            for cell_y, cell_x, weight in places:
                back[level][cell_y, cell_x, c] += weight * gradient[r, i, j, c]
    return pooled, back


def scene(kind):
    """Two levels of two images, RoIs of all sizes, a padded one and one beyond the map, and a gradient."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, *sides, 2)).astype(np.float32) for sides in ((12, 16), (6, 8))]
    corners = rng.uniform(0, [64, 48], (2, 8, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], axis=-1).astype(np.float32)
    if kind == "equal":
        # Few values and whole cells: many samples are equal, and every interpolation is exact.
        maps = [np.round(level) for level in maps]
        rois = 16 * np.round(rois / 16)
    rois[:, 0] = 0
    rois[:, 1] = [-16, 16, 32, 64]
    levels = rng.integers(0, 2, (2, 8)).astype(np.int32)
    return maps, rois, levels, rng.integers(-9, 10, (2, 8, 2, 2, 2)).astype(np.float32)


@pytest.mark.parametrize(("kind", "sampling_ratio"), [("equal", 2), ("random", 0)])
def test_values_and_gradients_are_those_of_loops(kind, sampling_ratio):
    grid = RoIGrid(2, sampling_ratio)
    maps, rois, levels, gradient = scene(kind)
    pooled, back = with_gradient(maps, rois, levels, gradient, grid)
    for image in range(2):
        of_image = [level[image] for level in maps]
        expected, expected_back = by_loops(of_image, rois[image], levels[image], gradient[image], grid)
        np.testing.assert_allclose(pooled[image], expected, rtol=0, atol=2e-6)
        for level, expected_level in zip(back, expected_back, strict=True):
            np.testing.assert_allclose(level[image], expected_level, rtol=0, atol=2e-5)
    assert all(np.any(level) for level in back)


def test_a_gpu_adds_up_nothing_in_any_order():
    maps, rois, levels, gradient = scene("random")
    traced = with_gradient.trace(maps, rois, levels, gradient, RoIGrid(2))
    scatters = traced.lower(lowering_platforms=("cuda",)).as_text().split('"stablehlo.scatter"')[1:]
    assert len(scatters) == 4  # of the cells around a sample
    assert not [text for text in scatters if "stablehlo.add" in text.partition("stablehlo.return")[0]]


def test_roi_by_roi_and_all_at_once_are_the_same():
    """A platform only ever runs one of the two."""
    rng = np.random.default_rng(0)
    cells = jnp.array(rng.integers(-3, 4, (60, 2)), jnp.float32)
    rows, columns = (
        roi_align_max._Axis(
            jnp.array(rng.uniform(-2, 4, 5), jnp.float32),
            jnp.array(rng.uniform(0, 3, 5), jnp.float32),
            jnp.array([0, 1, 2, 3, 3], jnp.int32),
            jnp.full(5, length, jnp.int32),
        )
        for length in (6, 10)
    )
    samples = roi_align_max._Samples(rows, columns, jnp.zeros(5, jnp.int32))
    search = jax.jit(partial(_search, 2))
    one_by_one = [search(cells, jax.tree.map(lambda part, row=row: part[row], samples)) for row in range(5)]
    at_once = search(cells, samples)
    for part in range(2):
        np.testing.assert_array_equal(at_once[part], [found[part] for found in one_by_one])
    assert len(np.unique(at_once[1])) > 2
