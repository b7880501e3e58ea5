"""RoIAlign of a pyramid on GPU, backward: each cell sums what it has given to bins, in a fixed order.

A scatter is added up in any order on a GPU. Here all pairs of a bin and a cell are sorted by cell, as numbers only, and
one kernel then gathers the gradients of bins, a few for each cell; what cells have beyond that is summed before. There
is room for two blocks of taps a RoI; where RoIs have more on average, a loop takes windows in turn, as on CPU.

Shape letters: `B` images, `R` RoIs an image, `N` = B R, `P` bins a side, `T` taps of a block along an axis, `E` pairs,
`L` cells of all levels of all images, one after the other, `C` channels, `V` rows, `S` sums.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops.cpu import roi_align_windows as windows
from mask_rcnn_jax.ops.gpu.roi_align_gather import Taps, block_of, taps_of
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid
from mask_rcnn_jax.ops.precision import at_least_float32

_AT_ONCE = 32  # rows that a kernel sums
_BLOCKS = 2  # of taps a RoI that there is room for; RoIs of all sizes and sides as 1 to 3 have 1.15 on average


class _Rows(NamedTuple):
    """Weighted rows, of which each cell has some that follow one another."""

    values: Float[Array, "V C"]
    at: Int[Array, " E"]  # which of the values
    weights: Float[Array, " E"]


class _Runs(NamedTuple):
    """The rows of each cell; of a cell that has none, `begins` may be larger than `ends`."""

    begins: Int[Array, " S"]
    ends: Int[Array, " S"]


def backward(
    grid: RoIGrid,
    features: tuple[Float[Array, "B _ _ C"], ...],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    gradient: Float[Array, "B R P P C"],
) -> tuple[Float[Array, "B _ _ C"], ...]:
    """Gradient of the features (of which only shapes and type matter), given that of the RoI features.

    Sums are those of float32 or wider. `rois` are in cells of their levels.
    """
    taps = taps_of(grid, features, rois, levels)

    def in_turn(gradient: Array) -> tuple[Array, ...]:
        maps = tuple(at_least_float32(level) for level in features)
        return windows.backward(grid, maps, rois, levels, at_least_float32(gradient))

    def at_once(gradient: Array) -> tuple[Array, ...]:
        return _sums_of_levels(grid, features, taps, gradient.reshape(-1, gradient.shape[-1]))

    def of_type(form: Callable, gradient: Array) -> tuple[Array, ...]:
        # In here, so that the sums themselves are not stored.
        return tuple(total.astype(level.dtype) for level, total in zip(features, form(gradient), strict=True))

    fits = jnp.sum(taps.blocks) <= _BLOCKS * taps.rois.shape[0]
    return lax.cond(fits, partial(of_type, at_once), partial(of_type, in_turn), gradient)


def _sums_of_levels(
    grid: RoIGrid, features: tuple[Float[Array, "B _ _ C"], ...], taps: Taps, of_bins: Float[Array, "_ C"]
) -> tuple[Float[Array, "B _ _ C"], ...]:
    areas = [level.shape[1] * level.shape[2] for level in features]
    images = features[0].shape[0]
    rows, runs = _pairs(grid, taps, images * sum(areas), of_bins)
    total = _sums(rows, runs, jnp.result_type(at_least_float32(of_bins), taps.rois)).reshape(images, sum(areas), -1)
    begins = [0, *itertools.accumulate(areas)]
    parts = zip(features, itertools.pairwise(begins), strict=True)
    return tuple(total[:, begin:end].reshape(level.shape) for level, (begin, end) in parts)


def _pairs(grid: RoIGrid, taps: Taps, length: int, of_bins: Float[Array, "_ C"]) -> tuple[_Rows, _Runs]:
    """Return the pairs of bins and cells, sorted by cell; those of a cell in the order of RoIs and bins."""
    num_rois, bins = taps.rois.shape[0], grid.output_size**2
    ends = jnp.cumsum(taps.blocks, dtype=jnp.int32)
    task = jnp.arange(_BLOCKS * num_rois, dtype=jnp.int32)
    roi = jnp.minimum(jnp.searchsorted(ends, task, side="right", method="compare_all"), num_rois - 1).astype(jnp.int32)
    block = block_of(grid, taps, roi, task - (ends - taps.blocks)[roi])
    cells = block.cells_y[:, :, None, :, None] + block.cells_x[:, None, :, None, :]
    weights = block.weights_y[:, :, None, :, None] * block.weights_x[:, None, :, None, :]
    bin_of = roi[:, None, None] * bins + jnp.arange(bins, dtype=jnp.int32).reshape(cells.shape[1:3])
    bin_of = jnp.broadcast_to(bin_of[..., None, None], cells.shape).reshape(-1)
    cells = jnp.where(weights != 0, cells, length).reshape(-1)
    number = jnp.arange(cells.shape[0], dtype=jnp.int32)
    cells, order = lax.sort((cells, number), num_keys=1, is_stable=True)
    # Maxima, of which any order gives the same.
    begins = -jnp.full(length, -cells.shape[0], jnp.int32).at[cells].max(-number, mode="drop", indices_are_sorted=True)
    ends = jnp.zeros(length, jnp.int32).at[cells].max(number + 1, mode="drop", indices_are_sorted=True)
    return _Rows(of_bins, bin_of[order], weights.reshape(-1)[order]), _Runs(begins, ends)


def _sums(rows: _Rows, runs: _Runs, dtype: jnp.dtype) -> Float[Array, "S C"]:
    """Sum the rows of each run: the first by themselves, the others in sums of as many, which are rows again."""
    total = _sum_of_first(rows, runs, dtype)
    size = rows.at.shape[0] // _AT_ONCE
    if size == 0:
        return total
    pieces = jnp.maximum(-(-(runs.ends - runs.begins) // _AT_ONCE) - 1, 0)
    last = jnp.cumsum(pieces, dtype=jnp.int32)
    first = last - pieces
    # The run of each piece, and those pieces that are the first of one.
    run = jnp.arange(pieces.shape[0], dtype=jnp.int32)
    run = jnp.zeros(size, jnp.int32).at[jnp.where(pieces > 0, first, size)].max(run, mode="drop")
    run, number = lax.cummax(run), jnp.arange(size, dtype=jnp.int32)
    begins = runs.begins[run] + _AT_ONCE * (number - first[run] + 1)
    of_pieces = _sum_of_first(rows, _Runs(begins, runs.ends[run]), dtype)
    further = _Runs(number, jnp.where(number == first[run], last[run], number))
    # Stored, not computed anew for each cell that takes one.
    sums = lax.optimization_barrier(_sums(_Rows(of_pieces, number, jnp.ones(size, dtype)), further, dtype))
    return total + jnp.where((pieces > 0)[:, None], sums[jnp.minimum(first, size - 1)], 0)


def _sum_of_first(rows: _Rows, runs: _Runs, dtype: jnp.dtype) -> Float[Array, "S C"]:
    """Sum the first rows of each run, at most `_AT_ONCE`: one kernel, which stores nothing but sums."""
    total = jnp.zeros((), dtype)
    for offset in range(_AT_ONCE):
        row = jnp.minimum(runs.begins + offset, rows.at.shape[0] - 1)
        weights = jnp.where(runs.begins + offset < runs.ends, rows.weights[row], 0)
        values = rows.values.at[rows.at[row]].get(mode="promise_in_bounds", wrap_negative_indices=False)
        total += values.astype(dtype) * weights[:, None]
    return total
