"""RoIAlign with the maximum of a bin's samples in place of their average (Mask R-CNN, table 2c).

All bins go through their samples at once, row by row, and note which was the highest. The gradient goes to the four
cells around it, for equal ones to those of the first, and is summed in a fixed order.

Shape letters: `B` images, `R` RoIs of an image, `N` any number of them, `P` bins a side, `C` channels, `L` cells of all
levels of all images, one after the other.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops.loops import as_index, zero_of
from mask_rcnn_jax.ops.pooling.cells import all_cells, first_cells
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid
from mask_rcnn_jax.ops.pooling.roi_pool import sum_by_cell
from mask_rcnn_jax.ops.precision import at_least_float32


class _Axis(NamedTuple):
    """The samples of RoIs along one axis of their maps."""

    start: Float[Array, "*N"]  # of the first bin, in cells
    side: Float[Array, "*N"]  # of a bin
    num: Int[Array, "*N"]  # samples of a bin
    length: Int[Array, "*N"]  # of the map


class _Samples(NamedTuple):
    rows: _Axis
    columns: _Axis
    origin: Int[Array, "*N"]  # number of the map's first cell among those of all maps


class _Tap(NamedTuple):
    """The two cells of an axis around samples."""

    low: Int[Array, "..."]
    high: Int[Array, "..."]
    fraction: Float[Array, "..."]  # of the way from one to the other
    inside: Bool[Array, "..."]  # False for samples that are not on the map, which are 0


def multilevel_roi_align_max(
    features: Sequence[Float[Array, "B _ _ C"]],
    cells: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    grid: RoIGrid,
) -> Float[Array, "B R P P C"]:
    """Return the highest sample of each bin of RoIs, which are in `cells` of the maps `features[levels[r]]`.

    Bins without samples, as those of padded RoIs are with adaptive sampling, are 0. Differentiable in `features` only
    (reverse mode).
    """
    channels, bins = features[0].shape[-1], (cells.shape[1], grid.output_size, grid.output_size)
    if cells.shape[1] == 0:
        return jnp.zeros((cells.shape[0], *bins, channels), features[0].dtype)
    heights, widths = zip(*(level.shape[1:3] for level in features), strict=True)
    samples = _Samples(
        _axis(grid, cells[..., 1], cells[..., 3], heights, levels),
        _axis(grid, cells[..., 0], cells[..., 2], widths, levels),
        first_cells(features, levels),
    )
    flat = all_cells(features)
    samples = jax.tree.map(lambda part: part.reshape(-1), samples)
    highest: Array = _highest(grid.output_size, flat.shape[0], flat, samples)
    return highest.reshape(-1, *bins, channels)


def _axis(
    grid: RoIGrid, start: Float[Array, "B R"], end: Float[Array, "B R"], lengths: Sequence[int], levels: Array
) -> _Axis:
    side = (end - start) / grid.output_size
    length = jnp.array(lengths, jnp.int32)[levels]
    # As many samples as a RoI that is as long as the map: the limit also keeps NaN from an endless loop.
    most = jnp.array([math.ceil(length / grid.output_size) for length in lengths], side.dtype)[levels]
    num = jnp.full_like(side, grid.sampling_ratio) if grid.sampling_ratio else jnp.clip(jnp.ceil(side), 0, most)
    return _Axis(start, side, num.astype(jnp.int32), length)


def _taps(axis: _Axis, bins: Array, sample: Array) -> _Tap:
    """Return the cells around a sample of each of `bins`; all that is given broadcasts."""
    num = jnp.maximum(axis.num, 1).astype(axis.side.dtype)
    at = axis.start + (bins + (sample + 0.5) / num) * axis.side
    clipped = jnp.clip(at, 0, axis.length - 1)
    low = jnp.floor(clipped).astype(jnp.int32)
    high = jnp.minimum(low + 1, axis.length - 1)
    return _Tap(low, high, clipped - low, (at >= -1) & (at <= axis.length))


# --- The maximum and its gradient -------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _highest(bins: int, length: Any, cells: Float[Array, "L C"], samples: _Samples) -> Float[Array, "N P P C"]:
    # `length` is that of the cells, a symbol where an export leaves the number of images open.
    return _search_all(bins, cells, samples)[0]


def _highest_fwd(bins: int, length: Any, cells: Array, samples: _Samples):
    highest, at = _search_all(bins, cells, samples)
    return highest, (at, samples)


def _highest_bwd(bins: int, length: int, residuals: tuple[Array, _Samples], gradient: Float[Array, "N P P C"]):
    at, samples = residuals
    rows, columns, origin = jax.tree.map(lambda part: part[:, None, None, None], samples)
    number, channels = jnp.arange(bins), gradient.shape[-1]
    in_a_row = jnp.broadcast_to(jnp.maximum(columns.num, 1), at.shape)
    y = _taps(rows, number[:, None, None], lax.div(at, in_a_row))
    x = _taps(columns, number[:, None], lax.rem(at, in_a_row))
    sampled = y.inside & x.inside & (rows.num > 0) & (columns.num > 0)
    wide = jnp.where(sampled, at_least_float32(gradient), 0)
    total = jnp.zeros((), wide.dtype)
    for cell_y, weight_y in ((y.low, 1 - y.fraction), (y.high, y.fraction)):
        for cell_x, weight_x in ((x.low, 1 - x.fraction), (x.high, x.fraction)):
            cell = origin + cell_y * columns.length + cell_x
            values = wide * weight_y * weight_x
            total = total + sum_by_cell(length, cell.reshape(-1, channels), values.reshape(-1, channels))
    return total.astype(gradient.dtype), None


_highest.defvjp(_highest_fwd, _highest_bwd)


def _search_all(bins: int, cells: Array, samples: _Samples) -> tuple[Array, Array]:
    """Search RoI by RoI on CPU, so that each is done with after its own samples, and elsewhere all at once."""
    search = partial(_search, bins)

    def one_by_one(cells: Array, samples: _Samples) -> tuple[Array, Array]:
        return lax.map(partial(search, cells), samples)

    return lax.platform_dependent(cells, samples, cpu=one_by_one, default=search)


def _search(
    bins: int, cells: Float[Array, "L C"], samples: _Samples
) -> tuple[Float[Array, "*N P P C"], Int[Array, "*N P P C"]]:
    """Return the highest sample of each bin and, row by row, its number, that of the first of equal ones."""
    rows, columns, origin = jax.tree.map(lambda part: part[..., None], samples)
    wide, tall = jnp.maximum(jnp.max(columns.num), 1), jnp.max(rows.num)
    number = jnp.arange(bins, dtype=rows.side.dtype)

    def value_of(y: _Tap, x: _Tap) -> Array:
        def at(cell_y: Array, cell_x: Array) -> Array:
            cell = (origin + cell_y * columns.length)[..., :, None] + cell_x[..., None, :]
            return cells.at[cell].get(mode="promise_in_bounds", wrap_negative_indices=False)

        below, beside = y.fraction[..., :, None, None], x.fraction[..., None, :, None]
        left, right = (at(y.low, cell) * (1 - below) + at(y.high, cell) * below for cell in (x.low, x.high))
        inside = y.inside[..., :, None, None] & x.inside[..., None, :, None]
        return jnp.where(inside, left * (1 - beside) + right * beside, 0)

    def look(step, found):
        highest, at = found
        row, column = lax.div(step, wide), lax.rem(step, wide)
        value = value_of(_taps(rows, number, row), _taps(columns, number, column))
        drawn = ((row < rows.num) & (column < columns.num))[..., None, None]
        higher = drawn & (value > highest)
        sample = (row * columns.num + column)[..., None, None]
        return jnp.where(higher, value, highest), jnp.where(higher, sample, at)

    shape = (*samples.origin.shape, bins, bins, cells.shape[-1])
    zero = zero_of(cells, *jax.tree.leaves(samples)).astype(cells.dtype)
    lowest = jnp.finfo(cells.dtype).min
    first = jnp.full(shape, zero + lowest), jnp.full(shape, zero.astype(jnp.int32))
    highest, at = lax.fori_loop(as_index(0), tall * wide, look, first)
    empty = ((rows.num == 0) | (columns.num == 0))[..., None, None]
    return jnp.where(empty, 0, highest), at
