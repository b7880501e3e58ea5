"""Attention between the tokens of a map, and where they lie: windows, absolute and relative positions.

Shape letters: `B` images or windows, `Y X` rows and columns of a map of tokens, `U V` those of the tokens attended to,
`h` heads, `c` channels of a head, `C` channels, `S` side of a window, `L` rows of a table, `N M` lengths.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mask_rcnn_jax.ops.precision import EXACT, at_least_float32

_CUBIC = -0.75  # PyTorch's parameter of the cubic convolution


def attend(
    q: Float[Array, "B Y X h c"],
    k: Float[Array, "B U V h c"],
    v: Float[Array, "B U V h c"],
    rows: Float[Array, "Y U c"] | None = None,
    columns: Float[Array, "X V c"] | None = None,
) -> Float[Array, "B Y X h c"]:
    """Return the mean of the values, weighted for each token by the softmax of its products with the keys.

    To a product is added what the query, before it is scaled, has in common with how far the key's row and column lie
    from its own: decomposed relative positions (Li et al. 2021, https://arxiv.org/abs/2112.01526, equation 4).
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("byxhc,buvhc->bhyxuv", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
    if rows is not None:
        logits += jnp.einsum("byxhc,yuc->bhyxu", q, rows, preferred_element_type=wide)[..., None]
    if columns is not None:
        logits += jnp.einsum("byxhc,xvc->bhyxv", q, columns, preferred_element_type=wide)[..., None, :]
    weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(v.dtype)
    return jnp.einsum("bhyxuv,buvhc->byxhc", weights, v)


def split_windows(x: Float[Array, "B Y X C"], side: int) -> Float[Array, "W S S C"]:
    """Cut maps into windows, row by row, with zeros below and to the right where a side is no multiple."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    x = x.reshape(batch, x.shape[1] // side, side, x.shape[2] // side, side, channels)
    return x.swapaxes(2, 3).reshape(-1, side, side, channels)


def join_windows(windows: Float[Array, "W S S C"], size: tuple[int, int]) -> Float[Array, "B Y X C"]:
    """Undo `split_windows` for maps of this height and width."""
    (height, width), (side, channels) = size, windows.shape[-2:]
    shape = (-1, -(-height // side), -(-width // side), side, side, channels)
    x = windows.reshape(shape).swapaxes(2, 3)
    return x.reshape(x.shape[0], shape[1] * side, shape[2] * side, channels)[:, :height, :width]


def absolute_positions(table: Float[Array, "G G C"], size: tuple[int, int]) -> Float[Array, "Y X C"]:
    """Return the positions of a map of this height and width, interpolated bicubically from those of a square one."""
    wide = at_least_float32(table)
    rows, columns = (jnp.asarray(cubic_weights(table.shape[0], side), wide.dtype) for side in size)
    return jnp.einsum("yg,xk,gkc->yxc", rows, columns, wide, precision=EXACT).astype(table.dtype)


def relative_positions(table: Float[Array, "L c"], length: int) -> Float[Array, "N N c"]:
    """Return the row of the table for each two places of an axis, by how far the first lies after the second.

    The middle row is for no distance. A table made for another length is interpolated linearly.
    """
    wide, distances = at_least_float32(table), 2 * length - 1
    if len(table) != distances:
        weights = jnp.asarray(linear_weights(len(table), distances), wide.dtype)
        wide = jnp.matmul(weights, wide, precision=EXACT)
    after = jnp.arange(length)[:, None] - jnp.arange(length) + length - 1
    # As a product, whose gradient is one as well: a GPU adds up that of a gather in any order.
    rows = jax.nn.one_hot(after, distances, dtype=wide.dtype)
    return jnp.einsum("nml,lc->nmc", rows, wide, precision=EXACT).astype(table.dtype)


def cubic_weights(length: int, size: int) -> Float[np.ndarray, "size length"]:
    """Return the weights of an axis's cells in each of `size` new ones, as PyTorch resizes bicubically.

    Cells beyond the axis take the value of the outer one; nothing is smoothed where it shrinks.
    """
    offsets = np.arange(-1, 3)
    centres = _centres(length, size)
    first = np.floor(centres)
    distance = np.abs(centres[:, None] - (first[:, None] + offsets))
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return _summed(first[:, None] + offsets, np.where(distance <= 1, near, far), length)


def linear_weights(length: int, size: int) -> Float[np.ndarray, "size length"]:
    """Return the weights of an axis's cells in each of `size` new ones, as PyTorch resizes linearly."""
    centres = np.clip(_centres(length, size), 0, None)
    first = np.floor(centres)
    return _summed(first[:, None] + np.arange(2), np.stack([1 - centres + first, centres - first], axis=1), length)


def _centres(length: int, size: int) -> Float[np.ndarray, " size"]:
    """The centres of the new cells, in old ones, whose centres lie at 0, 1, ..."""
    return (np.arange(size) + 0.5) * (length / size) - 0.5


def _summed(
    cells: Float[np.ndarray, "size taps"], weights: Float[np.ndarray, "size taps"], length: int
) -> Float[np.ndarray, "size length"]:
    inside = np.clip(cells, 0, length - 1)
    return np.sum((inside[..., None] == np.arange(length)) * weights[..., None], axis=1)
