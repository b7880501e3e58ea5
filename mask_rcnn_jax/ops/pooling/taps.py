"""The cells that RoIAlign reads ("taps"), for the implementations that gather them.

A bin's average is a sum over few cells along each axis, which follow one another. Taps are taken in blocks of a fixed
number, of which a long RoI has several. Shape letters: `N` RoIs, `P` bins a side, `T` taps of a block along an axis.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid, sample_range


class TapRange(NamedTuple):
    """The cells that the bins of every RoI touch along one axis of its level."""

    first: Int[Array, "N P"]  # cell
    blocks: Int[Array, " N"]  # how many blocks of cells reach to the last
    length: Float[Array, " N"]  # of the axis


def most_blocks(grid: RoIGrid, lengths: tuple[int, ...], block: int) -> int:
    """Return the number of blocks that a RoI as long as the longest axis has, and the cell after its last sample."""
    return -(-(-(-max(lengths) // grid.output_size) + 2) // block)


def tap_range(
    grid: RoIGrid, extents: Float[Array, "N 2"], lengths: tuple[int, ...], levels: Int[Array, " N"], block: int
) -> TapRange:
    """Find the cells of RoIs whose extents are in cells of the axis, which has `lengths[levels[n]]` cells."""
    length = jnp.array(lengths, extents.dtype)[levels]
    low, high = sample_range(grid, extents)
    first, last = (jnp.floor(jnp.clip(at, 0, length[:, None] - 1)).astype(jnp.int32) for at in (low, high))
    # The limit also keeps NaN from an endless loop.
    blocks = jnp.clip(-(-(jnp.max(last - first, axis=1) + 2) // block), 1, most_blocks(grid, lengths, block))
    return TapRange(first, blocks, length)
