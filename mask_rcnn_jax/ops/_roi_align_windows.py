"""RoIAlign of a pyramid on CPU, backward: a loop over windows.

RoIAlign is `Wy @ F @ Wx.T`, and its gradient the transposed products. A RoI touches few cells of its level, so they are
taken over windows of 16 x 16 cells that cover them, one window after the other, and the loop runs as often as the RoIs
at hand need. Windows are added in one order: the gradient is deterministic, and holds nothing but itself.

Shape letters: `B` images, `H W` sides of a level, `R` RoIs an image, `P` bins a side, `T` sides of a window.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops._interpolation import Pooling, axis_weights
from mask_rcnn_jax.ops._loops import as_index, zero_of

_WINDOW = 16  # of 8, 16 and 32 cells the fastest in sum, at 256x256 and at 832x1344 pixels


class _Window(NamedTuple):
    """One step of the loop: a corner in an image's features, a RoI among all images', and its weights in the window."""

    image: Int[Array, ""]
    y: Int[Array, ""]
    x: Int[Array, ""]
    roi: Int[Array, ""]
    weights_y: Float[Array, "P T"]
    weights_x: Float[Array, "P T"]


def backward(
    pooling: Pooling,
    features: tuple[Float[Array, "B _ _ C"], ...],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    gradient: Float[Array, "B R P P C"],
) -> tuple[Float[Array, "B _ _ C"], ...]:
    """Gradient of the features (of which only the shapes matter), given that of the RoI features."""
    bins, channels = pooling.output_size, gradient.shape[-1]
    flat = gradient.reshape(-1, bins, bins, channels)
    gradients = []
    for index, level in enumerate(features):
        num_windows, window_at = _windows(pooling, index, level.shape[1], level.shape[2], rois, levels)

        def spread(step, level_gradient, window_at=window_at):
            window = window_at(step)
            roi_gradient = lax.dynamic_slice(flat, _corner(window.roi, 0, 0, 0), (1, bins, bins, channels))[0]
            each_row = jnp.broadcast_to(window.weights_x.T, (bins, *window.weights_x.T.shape))
            rows = jnp.einsum("pwq,pqc->pwc", each_row, roi_gradient)
            cells = jnp.einsum("hp,pwc->hwc", window.weights_y.T, rows)
            return _add(level_gradient, cells, (window.image, window.y, window.x, 0))

        zeros = jnp.full(level.shape, zero_of(level, rois, gradient))
        gradients.append(lax.fori_loop(0, num_windows, spread, zeros))
    return tuple(gradients)


def _windows(
    pooling: Pooling, index: int, height: int, width: int, rois: Float[Array, "B R 4"], levels: Int[Array, "B R"]
) -> tuple[Int[Array, ""], Callable[[Int[Array, ""]], _Window]]:
    """How many windows cover the RoIs of level `index`, and the window of each step."""
    rois_per_image = rois.shape[1]
    cells = pooling.to_cells(rois.reshape(-1, 4), index)
    tall, wide = min(_WINDOW, height), min(_WINDOW, width)
    top, rows = _cover(cells[:, 1], cells[:, 3], height, tall)
    left, columns = _cover(cells[:, 0], cells[:, 2], width, wide)
    count = jnp.where(levels.reshape(-1) == index, rows * columns, 0)
    total = jnp.cumsum(count)
    weights_y = axis_weights(cells[:, 1], cells[:, 3], pooling.output_size, height, pooling.sampling_ratio)
    weights_x = axis_weights(cells[:, 0], cells[:, 2], pooling.output_size, width, pooling.sampling_ratio)

    def window_at(step: Int[Array, ""]) -> _Window:
        # A sum, not searchsorted, which takes no symbolic batch in an export.
        roi = jnp.sum(total <= step, dtype=jnp.int32)
        tile = step - (total[roi] - count[roi])
        y, y_weights = _slice_weights(weights_y, roi, top[roi] + tile // columns[roi] * tall, tall)
        x, x_weights = _slice_weights(weights_x, roi, left[roi] + tile % columns[roi] * wide, wide)
        return _Window(roi // rois_per_image, y, x, roi, y_weights, x_weights)

    return total[-1], window_at


def _cover(start: Float[Array, " R"], end: Float[Array, " R"], length: int, window: int):
    """First cell that a RoI touches along an axis, and how many windows reach from it to the last."""
    first = jnp.clip(jnp.floor(jnp.minimum(start, end)), 0, length - 1).astype(jnp.int32)
    last = jnp.clip(jnp.ceil(jnp.maximum(start, end)), 0, length - 1).astype(jnp.int32)
    # The upper limit holds by itself for finite RoIs; with it NaN cannot make the loop endless.
    return first, jnp.clip((last - first) // window + 1, 1, -(-length // window))


def _slice_weights(weights: Float[Array, "R P L"], roi, first, window: int):
    """A RoI's weights from cell `first` on, and where the window really starts: it never leaves the feature map."""
    start = jnp.minimum(first, weights.shape[2] - window)
    inside = lax.dynamic_slice(weights, _corner(roi, 0, start), (1, weights.shape[1], window))[0]
    # Cells before `first` belong to the window before this one.
    return start, jnp.where(start + jnp.arange(window) >= first, inside, 0)


def _corner(*indices) -> tuple[Int[Array, ""], ...]:
    return tuple(map(as_index, indices))


def _add(array, update, corner):
    update, corner = update[None], _corner(*corner)
    return lax.dynamic_update_slice(array, lax.dynamic_slice(array, corner, update.shape) + update, corner)
