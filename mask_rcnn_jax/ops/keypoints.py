"""Keypoints between images and the cells of RoIs: training targets, and decoding predictions.

Shape letters: `G` ground-truth slots, `J` keypoints of an instance, `R` RoIs, `D` detections, `S` side of a heatmap,
`T` tiles taken at once, `Y X` height and width of a tile.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops.precision import EXACT, at_least_float32

# Measured on CPU: smaller tiles repeat more of the first product, larger ones look further past small boxes.
_TILE = (64, 128)  # height and width, pixels
_TILES_AT_ONCE = 16
_CUBIC = -0.75  # the free coefficient of cubic convolution; torch's choice
_BEYOND = 2**31 - 128  # the index of no pixel; exact in float32 too, as OpenVINO takes minima of integers


def keypoint_targets(
    keypoints: Float[Array, "G J 3"], rois: Float[Array, "R 4"], gt_index: Int[Array, " R"], size: int = 56
) -> tuple[Int[Array, "R J"], Bool[Array, "R J"]]:
    """The cell, `row * size + column`, of `keypoints[gt_index[r]]` (x, y, visibility) on a grid over `rois[r]`.

    Also whether there is such a cell: the keypoint is annotated (visibility above 0) and inside the RoI, whose right
    and lower borders belong to the last cells. Where not, as in padded RoIs, the cell is 0. `keypoints_to_heatmap` of
    Detectron2 and of torchvision.
    """
    of_roi = keypoints[gt_index]
    (column, column_valid), (row, row_valid) = (_cells_along(of_roi, rois, axis, size) for axis in (0, 1))
    valid = column_valid & row_valid & (of_roi[..., 2] > 0)
    return jnp.where(valid, row * size + column, 0), valid


def _cells_along(keypoints, rois, axis: int, size: int) -> tuple[Int[Array, "R J"], Bool[Array, "R J"]]:
    """Cells of keypoints along x (`axis` 0) or y (1), and whether they lie inside."""
    start, end, at = rois[:, axis, None], rois[:, axis + 2, None], keypoints[..., axis]
    scale = size / jnp.where(end > start, end - start, 1)
    cell = jnp.where(at == end, size - 1, jnp.floor((at - start) * scale))
    # Clipped first: what is far outside does not fit an integer.
    return jnp.clip(cell, 0, size - 1).astype(jnp.int32), (cell >= 0) & (cell < size) & (end > start)


class _Best(NamedTuple):
    """The largest value seen of each heatmap, and its pixel: `row * width + column` in the box's own raster."""

    value: Float[Array, "*D J"]
    pixel: Int[Array, "*D J"]


def decode_keypoints(
    heatmaps: Float[Array, "D J S S"],
    boxes: Float[Array, "D 4"],
    convention: Literal["detectron2", "torchvision"] = "detectron2",
) -> Float[Array, "D J 3"]:
    """The most likely place (x, y, score) of each keypoint, in the pixels of `boxes`.

    A heatmap of logits is resized bicubically to its box, each side rounded up to whole pixels and at least 1, and the
    centre of its highest pixel is the keypoint; equal pixels go to the first, row by row. The score is, for
    "detectron2", the exponential of that pixel over the sum of the exponentials of the S x S logits; for "torchvision"
    the pixel itself. Boxes without area, padded rows among them, give zeros. `heatmaps_to_keypoints` of both.

    No resized map is held: one loop takes the tiles of all boxes, as many as there are, and keeps the best pixel.
    """
    heatmaps, boxes = at_least_float32(heatmaps), at_least_float32(boxes)
    sides = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    raster = jnp.ceil(sides).astype(jnp.int32)  # width, height
    real = jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    best = _highest_pixels(heatmaps, raster, real)
    column_row = jnp.stack([best.pixel % raster[:, :1], best.pixel // raster[:, :1]], axis=-1)
    places = (column_row + 0.5) * (sides / raster)[:, None] + boxes[:, None, :2]
    score = best.value
    if convention == "detectron2":
        score = jnp.exp(best.value - jax.nn.logsumexp(heatmaps, axis=(2, 3)))
    return jnp.where(real[:, None, None], jnp.concatenate([places, score[..., None]], axis=-1), 0)


def _highest_pixels(heatmaps: Float[Array, "D J S S"], raster: Int[Array, "D 2"], real: Bool[Array, " D"]) -> _Best:
    """The highest pixel of each heatmap resized to `raster` (width, height); anything finite where not `real`."""
    num_boxes = heatmaps.shape[0]
    across, down = -(-raster[:, 0] // _TILE[1]), -(-raster[:, 1] // _TILE[0])
    count = jnp.where(real, across * down, 0)
    total = jnp.cumsum(count)

    def take(step: Int[Array, ""], best: _Best) -> _Best:
        number = step * _TILES_AT_ONCE + jnp.arange(_TILES_AT_ONCE)
        box = jnp.sum(number[:, None] >= total, axis=1)  # D past the last tile: such a tile belongs to no box
        owned = box[:, None] == jnp.arange(num_boxes)
        box = jnp.minimum(box, num_boxes - 1)
        within = number - (total - count)[box]
        y = (within // across[box] * _TILE[0])[:, None] + jnp.arange(_TILE[0])
        x = (within % across[box] * _TILE[1])[:, None] + jnp.arange(_TILE[1])
        tile = _highest_of_tiles(heatmaps[box], y, x, raster[box])
        # What is known already, and T tiles; a tile says nothing of boxes that it is not part of.
        value = jnp.where(owned[..., None], tile.value[:, None], -jnp.inf)
        pixel = jnp.broadcast_to(tile.pixel[:, None], value.shape)
        value, pixel = jnp.concatenate([best.value[None], value]), jnp.concatenate([best.pixel[None], pixel])
        return _first_highest(value, pixel, axis=(0,))

    # Derived from the operands: inside shard_map a constant would not vary over the mesh as the results do.
    start = jnp.where(real[:, None], -jnp.inf, heatmaps[:, :, 0, 0])
    steps = -(-total[-1] // _TILES_AT_ONCE)
    return jax.lax.fori_loop(0, steps, take, _Best(start, jnp.zeros_like(start, jnp.int32)))


def _highest_of_tiles(
    heatmaps: Float[Array, "T J S S"], y: Int[Array, "T Y"], x: Int[Array, "T X"], raster: Int[Array, "T 2"]
) -> _Best:
    """The highest of the pixels at rows `y` and columns `x` of the resized heatmaps."""
    width, height = raster[:, :1], raster[:, 1:]
    along_y = _bicubic_weights(y.astype(heatmaps.dtype), height, heatmaps.shape[-1])
    along_x = _bicubic_weights(x.astype(heatmaps.dtype), width, heatmaps.shape[-1])
    # The highest is sought among near-equals: the reduced precision of accelerators would choose another.
    values = jnp.einsum("tyh,tjhw->tjyw", along_y, heatmaps, precision=EXACT)
    values = jnp.einsum("tjyw,txw->tjyx", values, along_x, precision=EXACT)
    inside = (y < height)[:, None, :, None] & (x < width)[:, None, None, :]
    pixels = (y * width)[:, None, :, None] + x[:, None, None, :]
    return _first_highest(jnp.where(inside, values, -jnp.inf), pixels, axis=(2, 3))


def _first_highest(values: Float[Array, "..."], pixels: Int[Array, "..."], axis: tuple[int, ...]) -> _Best:
    """The highest value along some axes, and the lowest of the pixels that have it."""
    highest = jnp.max(values, axis=axis, keepdims=True)
    pixel = jnp.min(jnp.where(values == highest, pixels, _BEYOND), axis=axis)
    return _Best(jnp.squeeze(highest, axis), pixel.astype(jnp.int32))


def _bicubic_weights(pixels: Float[Array, "T N"], length: Int[Array, "T 1"], side: int) -> Float[Array, "T N {side}"]:
    """Cells' weights in some pixels (indices 0, 1, ...) of an axis of `side` cells that is resized to `length` pixels.

    `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`: cubic convolution over four cells, where
    those beyond the border repeat the outer cell.
    """
    at = (pixels + 0.5) * (side / length.astype(pixels.dtype)) - 0.5
    cells = jnp.floor(at).astype(jnp.int32)[..., None] + jnp.arange(-1, 3)
    distance = jnp.abs(at[..., None] - cells)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    weights = jnp.where(distance <= 1, near, far)
    clamped = jnp.clip(cells, 0, side - 1)[..., None] == jnp.arange(side)
    return jnp.sum(jnp.where(clamped, weights[..., None], 0), axis=-2)
