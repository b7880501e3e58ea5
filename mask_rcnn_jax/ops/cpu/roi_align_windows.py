"""RoIAlign of a pyramid as a loop over windows: on TPU, and backward on CPU.

RoIAlign is `Wy @ F @ Wx.T`, and its gradient the transposed products. A RoI touches few cells of its level, so they are
taken over windows of 16 x 16 cells that cover them, one window after the other, and the loop runs as often as the RoIs
at hand need. Windows are added in one order: the gradient is deterministic, and holds nothing but itself.

Shape letters: `B` images, `H W` sides of a level, `R` RoIs an image, `N` = B R, `P` bins a side, `K` windows at most
along an axis, `T` sides of a window.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops.loops import as_index, part, row, with_part, zero_of
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid, cell_weights
from mask_rcnn_jax.ops.precision import EXACT

_WINDOW = 16  # of 8, 16 and 32 cells the fastest in sum, at 256x256 and at 832x1344 pixels


class _Windows(NamedTuple):
    """The windows that cover every RoI along one axis of its level."""

    num: Int[Array, " N"]
    corner: Int[Array, "N K"]  # first cell
    weights: Float[Array, "N P K*T"]


def forward(
    grid: RoIGrid,
    features: tuple[Float[Array, "B _ _ C"], ...],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
) -> Float[Array, "B R P P C"]:
    """RoI features of every image, float32 or wider; `rois` are in cells of their levels."""
    bins, channels, rois_per_image = grid.output_size, features[0].shape[-1], rois.shape[1]
    flat_rois, flat_levels = rois.reshape(-1, 4), levels.reshape(-1)
    heights, widths = zip(*(level.shape[1:3] for level in features), strict=True)
    rows = _windows(grid, flat_rois[:, 1::2], heights, flat_levels)
    columns = _windows(grid, flat_rois[:, 0::2], widths, flat_levels)
    pooled = jnp.full((flat_rois.shape[0], bins, bins, channels), zero_of(rois, levels, *features))
    for index, level in enumerate(features):
        count = jnp.where(flat_levels == index, rows.num * columns.num, 0)
        total = jnp.cumsum(count, dtype=jnp.int32)
        missing = (max(0, _WINDOW - side) for side in level.shape[1:3])
        level = jnp.pad(level, ((0, 0), *((0, cells) for cells in missing), (0, 0)))

        def pool(step, pooled, level=level, count=count, total=total):
            roi = jnp.sum(total <= step, dtype=jnp.int32)
            window, wide = step - (row(total, roi) - row(count, roi)), row(columns.num, roi)
            y, weights_y = _window(rows, roi, lax.div(window, wide))
            x, weights_x = _window(columns, roi, lax.rem(window, wide))
            corner = lax.div(roi, as_index(rois_per_image)), y, x, 0
            cells = part(level, corner, (1, _WINDOW, _WINDOW, channels))[0].astype(pooled.dtype)
            of_rows = jnp.einsum("ph,hwc->pwc", weights_y, cells, precision=EXACT)
            each_row = jnp.broadcast_to(weights_x, (bins, *weights_x.shape))
            of_bins = jnp.einsum("pqw,pwc->pqc", each_row, of_rows, precision=EXACT)
            return with_part(pooled, (row(pooled, roi) + of_bins)[None], (roi, 0, 0, 0))

        pooled = lax.fori_loop(as_index(0), total[-1], pool, pooled)
    return pooled.reshape(*rois.shape[:2], bins, bins, channels)


def backward(
    grid: RoIGrid,
    features: tuple[Float[Array, "B _ _ C"], ...],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    gradient: Float[Array, "B R P P C"],
) -> tuple[Float[Array, "B _ _ C"], ...]:
    """Gradient of the features (of which only the shapes matter), given that of the RoI features.

    `rois` are in cells of their levels.
    """
    bins, rois_per_image = grid.output_size, rois.shape[1]
    roi_gradients = gradient.reshape(-1, *gradient.shape[2:])
    flat_rois, flat_levels = rois.reshape(-1, 4), levels.reshape(-1)
    heights, widths = zip(*(level.shape[1:3] for level in features), strict=True)
    rows = _windows(grid, flat_rois[:, 1::2], heights, flat_levels)
    columns = _windows(grid, flat_rois[:, 0::2], widths, flat_levels)
    gradients = []
    for index, level in enumerate(features):
        count = jnp.where(flat_levels == index, rows.num * columns.num, 0)
        total = jnp.cumsum(count, dtype=jnp.int32)

        def spread(step, level_gradient, count=count, total=total):
            # A sum, not searchsorted, which takes no symbolic batch in an export.
            roi = jnp.sum(total <= step, dtype=jnp.int32)
            window, wide = step - (row(total, roi) - row(count, roi)), row(columns.num, roi)
            y, weights_y = _window(rows, roi, lax.div(window, wide))
            x, weights_x = _window(columns, roi, lax.rem(window, wide))
            each_row = jnp.broadcast_to(weights_x.T, (bins, *weights_x.T.shape))
            of_rows = jnp.einsum("pwq,pqc->pwc", each_row, row(roi_gradients, roi), precision=EXACT)
            of_cells = jnp.einsum("hp,pwc->hwc", weights_y.T, of_rows, precision=EXACT)[None]
            corner = lax.div(roi, as_index(rois_per_image)), y, x, 0
            return with_part(level_gradient, part(level_gradient, corner, of_cells.shape) + of_cells, corner)

        # Levels smaller than a window have cells to spare, which no weight reaches.
        batch, height, width, channels = level.shape
        shape = batch, max(height, _WINDOW), max(width, _WINDOW), channels
        level_gradient = lax.fori_loop(as_index(0), total[-1], spread, jnp.full(shape, zero_of(level, rois, gradient)))
        gradients.append(level_gradient[:, :height, :width])
    return tuple(gradients)


def _windows(
    grid: RoIGrid, extents: Float[Array, "N 2"], lengths: tuple[int, ...], levels: Int[Array, " N"]
) -> _Windows:
    """Windows from the first cell that a RoI touches to the last; they never leave the feature map."""
    length = jnp.array(lengths, jnp.int32)[levels]
    first = jnp.clip(jnp.floor(jnp.min(extents, axis=1)), 0, length - 1).astype(jnp.int32)
    last = jnp.clip(jnp.ceil(jnp.max(extents, axis=1)), 0, length - 1).astype(jnp.int32)
    # The upper limit holds by itself for finite RoIs; with it NaN cannot make the loop endless.
    most = -(-max(lengths) // _WINDOW)
    num = jnp.clip((last - first) // _WINDOW + 1, 1, most)
    begin = first[:, None] + _WINDOW * jnp.arange(most, dtype=jnp.int32)
    corner = jnp.minimum(begin, jnp.maximum(length - _WINDOW, 0)[:, None])
    cells = corner[:, :, None] + jnp.arange(_WINDOW, dtype=jnp.int32)
    # Cells before a window's begin belong to the window before it.
    own = (cells >= begin[:, :, None]).reshape(extents.shape[0], 1, -1)
    cells = cells.reshape(own.shape).astype(extents.dtype)
    weights = cell_weights(grid, extents, cells, length.astype(extents.dtype))
    return _Windows(num, corner, jnp.where(own, weights, 0))


def _window(windows: _Windows, roi, number) -> tuple[Int[Array, ""], Float[Array, "P T"]]:
    """Return the start of one window of a RoI along an axis, and its weights."""
    bins = windows.weights.shape[1]
    corner = part(windows.corner, (roi, number), (1, 1)).reshape(())
    return corner, part(windows.weights, (roi, 0, number * _WINDOW), (1, bins, _WINDOW))[0]
