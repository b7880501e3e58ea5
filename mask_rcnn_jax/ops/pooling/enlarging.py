"""Maps on finer grids. Shape letters: `B` images, `H W` sides of a map, `C` channels."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def enlarge(maps: Float[Array, "B H W C"], factor: int) -> Float[Array, "B _ _ C"]:
    """Interpolate maps bilinearly on a grid of `factor` times as many cells a side, an even number, or 1.

    As `torch.nn.functional.interpolate` without aligned corners: beyond the outermost centres a map is constant. Made
    of shifted arrays, so that its gradient scatters nothing.
    """
    return maps if factor == 1 else _along(_along(maps, factor, axis=2), factor, axis=1)


def _along(x: Float[Array, "B H W C"], factor: int, axis: int) -> Float[Array, "B _ _ C"]:
    length = x.shape[axis]
    # The neighbours of each cell; itself where it lies at the edge.
    before = jnp.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, length - 1)], axis)
    after = jnp.concatenate([_part(x, axis, 1, length), _part(x, axis, length - 1, length)], axis)
    cells = []
    for number in range(factor):
        offset = (number + 0.5) / factor - 0.5  # of the finer cell's centre, in cells
        cells.append(x * (1 - abs(offset)) + (before if offset < 0 else after) * abs(offset))
    shape = (*x.shape[:axis], length * factor, *x.shape[axis + 1 :])
    return jnp.stack(cells, axis + 1).reshape(shape)


def _part(x: Float[Array, "B H W C"], axis: int, start: int, stop: int) -> Float[Array, "B _ _ C"]:
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]
