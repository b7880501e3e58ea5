"""RoIAlign of a pyramid on GPU, forward: each bin gathers the cells that it touches, of all RoIs at once.

Taps are taken in blocks, and one kernel sums those of a block for many RoIs without storing them. The loop begins with
the first block of every RoI and goes on with those that have more: a RoI of an area that FPN assigns to its level has
few, a long one some, and one as large as the map has no limit.

Shape letters: `B` images, `R` RoIs an image, `N` = B R, `K` some of them, `P` bins a side, `T` taps of a block along an
axis, `L` cells of all levels of all images, one after the other, `C` channels.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops.loops import part, with_part, zero_of
from mask_rcnn_jax.ops.pooling.cells import all_cells, first_cells
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid, cell_weights
from mask_rcnn_jax.ops.pooling.taps import TapRange, tap_range

# By FPN's rule a RoI has up to 28 x 28 cells on its level. Bins of a 28th of b cells touch b + 1.
_SIDE, _MOST_TAPS = 28, 5


class Taps(NamedTuple):
    """The cells that RoIs touch on their maps."""

    rois: Float[Array, "N 4"]
    rows: TapRange
    columns: TapRange
    origin: Int[Array, " N"]  # number of the map's first cell among those of all maps

    @property
    def blocks(self) -> Int[Array, " N"]:
        """The number of blocks of each RoI."""
        return self.rows.blocks * self.columns.blocks


class Block(NamedTuple):
    """One block of taps of some RoIs."""

    cells_y: Int[Array, "K P T"]  # numbers of the first cells of rows
    cells_x: Int[Array, "K P T"]  # what to add to them
    weights_y: Float[Array, "K P T"]
    weights_x: Float[Array, "K P T"]


def block_side(grid: RoIGrid) -> int:
    """Return the taps of a block along an axis."""
    return min(_MOST_TAPS, 1 + -(-_SIDE // grid.output_size))


def taps_of(
    grid: RoIGrid, features: tuple[Float[Array, "B _ _ C"], ...], rois: Float[Array, "B R 4"], levels: Int[Array, "B R"]
) -> Taps:
    """Find the taps of RoIs, which are in cells of their levels."""
    heights, widths = zip(*(level.shape[1:3] for level in features), strict=True)
    flat, flat_levels, block = rois.reshape(-1, 4), levels.reshape(-1), block_side(grid)
    rows = tap_range(grid, flat[:, 1::2], heights, flat_levels, block)
    columns = tap_range(grid, flat[:, 0::2], widths, flat_levels, block)
    return Taps(flat, rows, columns, first_cells(features, levels).reshape(-1))


def block_of(grid: RoIGrid, taps: Taps, roi: Int[Array, " K"], number: Int[Array, "#K"]) -> Block:
    """Return a block of each of some RoIs; those beyond a RoI's last have no weight."""
    wide, width = taps.columns.blocks[roi], taps.columns.length[roi].astype(jnp.int32)
    there = (number < taps.blocks[roi])[:, None, None]

    def axis(along: TapRange, start: int, number: Int[Array, " K"]) -> tuple[Array, Array]:
        side = block_side(grid)
        cells = (along.first[roi] + (number * side)[:, None])[:, :, None] + jnp.arange(side, dtype=jnp.int32)
        length, extents = along.length[roi], taps.rois[roi, start::2]
        weights = cell_weights(grid, extents, cells.astype(extents.dtype), length)
        return jnp.clip(cells, 0, length.astype(jnp.int32)[:, None, None] - 1), weights

    cells_y, weights_y = axis(taps.rows, 1, lax.div(number, wide))
    cells_x, weights_x = axis(taps.columns, 0, lax.rem(number, wide))
    first = taps.origin[roi][:, None, None] + cells_y * width[:, None, None]
    return Block(first, cells_x, jnp.where(there, weights_y, 0), weights_x)


def forward(
    grid: RoIGrid,
    features: tuple[Float[Array, "B _ _ C"], ...],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
) -> Float[Array, "B R P P C"]:
    """RoI features of every image, float32 or wider; `rois` are in cells of their levels."""
    bins, channels, chunk = grid.output_size, features[0].shape[-1], rois.shape[1]
    taps = taps_of(grid, features, rois, levels)
    cells = all_cells(features)
    # Those with the most blocks first: RoIs that have another are then the first of them.
    order = jnp.argsort(-taps.blocks).astype(jnp.int32)
    most = jnp.max(taps.blocks)

    def add_block(state):
        number, begin, pooled = state
        block = block_of(grid, taps, part(order, (begin,), (chunk,)), number[None])
        corner = begin, 0, 0, 0
        before = part(pooled, corner, (chunk, *pooled.shape[1:]))
        pooled = with_part(pooled, before + _sum_of_block(cells, block, pooled.dtype), corner)
        more = begin + chunk < jnp.sum(taps.blocks > number)
        return jnp.where(more, number, number + 1), jnp.where(more, begin + chunk, 0), pooled

    zero = zero_of(rois, levels, *features)
    dtype = jnp.promote_types(zero.dtype, jnp.float32)
    nothing = jnp.full((taps.rois.shape[0], bins, bins, channels), zero.astype(dtype))
    first = zero.astype(jnp.int32)
    pooled = lax.while_loop(lambda state: state[0] < most, add_block, (first, first, nothing))[2]
    place = jnp.argsort(order)
    return pooled.at[place].get(mode="promise_in_bounds").reshape(*rois.shape[:2], bins, bins, channels)


def _sum_of_block(cells: Float[Array, "L C"], block: Block, dtype: jnp.dtype) -> Float[Array, "K P P C"]:
    total, side = jnp.zeros((), dtype), block.cells_y.shape[2]
    for y, x in itertools.product(range(side), range(side)):
        place = block.cells_y[:, :, None, y] + block.cells_x[:, None, :, x]
        weight = block.weights_y[:, :, None, y] * block.weights_x[:, None, :, x]
        values = cells.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)
        total += values.astype(dtype) * weight[..., None]
    return total
