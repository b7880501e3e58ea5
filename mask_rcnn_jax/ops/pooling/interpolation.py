"""RoIAlign along one axis, as the rows of a matrix.

RoIAlign with averaging is linear in the features and separates into its axes: a RoI's features are `Wy @ F @ Wx.T` with
two small matrices. This file computes such a matrix, or some columns of it. Shape letters: `R` RoIs, `P` bins, `L`
cells of the axis, `T` some cells.

The extents of RoIs along an axis, `[R, 2]`, are where each starts and ends.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# With adaptive sampling a bin of side b holds n = ceil(b) samples, b / n apart: more than half a cell for n of 2 and
# more. A cell answers to an interval of two cells, in which at most this many consecutive samples fall (one to spare).
_SAMPLES_NEAR_CELL = 5


@dataclass(frozen=True)
class RoIGrid:
    """The bins that RoIAlign cuts a RoI into, and the samples that it takes in each; static under jit.

    `aligned` shifts by half a cell (Detectron2); without it a RoI is at least one cell a side (torchvision).
    """

    output_size: int  # bins a side
    sampling_ratio: int = 0  # samples a bin and axis; 0 is adaptive: ceil(RoI side / bins)
    aligned: bool = True

    def to_cells(self, rois: Float[Array, "*B R 4"], scale: float | Float[Array, "*B R 1"]) -> Float[Array, "*B R 4"]:
        """RoIs in cells of their maps, whose centres lie at 0, 1, ...; `scale` is that of each map, in cells a pixel.

        With `aligned` the image's edge is at -0.5; else it is at 0, and a side has at least one cell.
        """
        cells = rois * scale
        if self.aligned:
            return cells - 0.5
        start, end = cells[..., :2], cells[..., 2:]
        return jnp.concatenate([start, jnp.maximum(end, start + 1)], axis=-1)


def axis_weights(
    grid: RoIGrid,
    extents: Float[Array, "R 2"],
    length: int,
    bounds: tuple[Float[Array, " R"], Float[Array, " R"]] | None = None,
) -> Float[Array, "R P L"]:
    """Weight of every cell of an axis in every bin's average, as `cell_weights`."""
    cells = jnp.broadcast_to(jnp.arange(length, dtype=extents.dtype), (extents.shape[0], 1, length))
    return cell_weights(grid, extents, cells, jnp.full_like(extents[:, 0], length), bounds)


# Compiled as one: a model asks for it so often that tracing it would take a third of tracing a training step.
@partial(jax.jit, static_argnames="grid")
def cell_weights(
    grid: RoIGrid,
    extents: Float[Array, "R 2"],
    cells: Float[Array, "R #P T"],
    length: Float[Array, " R"],
    bounds: tuple[Float[Array, " R"], Float[Array, " R"]] | None = None,
) -> Float[Array, "R P T"]:
    """Weight of `cells` in every bin's average, for RoIs whose extents are in cell centres (cell 0 lies at 0).

    Samples lie at `start + (bin + (i + .5) / n) * bin side`, with n = `sampling_ratio`, or ceil(bin side) where that is
    0; a side that is not positive then has no samples and gives zeros. A sample outside `bounds` (by default [-1,
    length]) counts as 0; one between them and the outer cell centres takes the value of the outer cell. Cells beyond
    the axis, which has `length` of them, have no weight.
    """
    bin_side, bin_start = (values[:, :, None] for values in _bins(grid, extents))
    if grid.sampling_ratio > 0:
        num = jnp.full_like(bin_side, grid.sampling_ratio)
        first, candidates = jnp.zeros_like(bin_side), grid.sampling_ratio
    else:
        num = jnp.maximum(jnp.ceil(bin_side), 0.0)
        spacing = jnp.maximum(bin_side / jnp.maximum(num, 1.0), 1e-6)
        first = jnp.clip(jnp.floor((cells - 1 - bin_start) / spacing - 0.5), 0, jnp.maximum(num - 1, 0))
        candidates = _SAMPLES_NEAR_CELL
    length = length[:, None, None]
    low, high = (-1.0, length) if bounds is None else (bound[:, None, None] for bound in bounds)
    total = jnp.zeros((*bin_start.shape[:2], cells.shape[-1]), extents.dtype)
    for offset in range(candidates):
        sample = first + offset
        at = bin_start + (sample + 0.5) * bin_side / jnp.maximum(num, 1.0)
        counts = (sample < num) & (at >= low) & (at <= high)
        weight = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, length - 1) - cells), 0)
        total += jnp.where(counts, weight, 0)
    return total / jnp.maximum(num, 1.0)


def sample_range(grid: RoIGrid, extents: Float[Array, "R 2"]) -> tuple[Float[Array, "R P"], Float[Array, "R P"]]:
    """Return the position of the first and the last sample of each bin; arguments as for `cell_weights`."""
    bin_side, bin_start = _bins(grid, extents)
    ratio = grid.sampling_ratio
    num = jnp.full_like(bin_side, ratio) if ratio else jnp.maximum(jnp.ceil(bin_side), 1.0)
    return bin_start + 0.5 * bin_side / num, bin_start + (num - 0.5) * bin_side / num


def _bins(grid: RoIGrid, extents: Float[Array, "R 2"]) -> tuple[Float[Array, "R 1"], Float[Array, "R P"]]:
    """Side of the bins of each RoI, and where each starts."""
    start, end = extents[:, :1], extents[:, 1:]
    side = (end - start) / grid.output_size
    return side, start + jnp.arange(grid.output_size, dtype=extents.dtype) * side
