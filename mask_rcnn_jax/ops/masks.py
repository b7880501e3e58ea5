"""Masks between grids and images: training targets, and pasting predictions.

Shape letters: `G` ground-truth slots, `Ch Cw` sides of a mask grid, `R` RoIs, `D` detections, `M` side of a predicted
mask.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid, axis_weights
from mask_rcnn_jax.ops.precision import EXACT, at_least_float32

PasteConvention = Literal["detectron2", "torchvision"]  # how a mask is resized to its box

_TARGET_CHUNK_CELLS = 2**21  # mask cells taken at once: small grids in one go, full bitmaps RoI by RoI
_PASTE_CHUNK = 8


def mask_targets(
    masks: UInt8[Array, "G Ch Cw"],
    regions: Float[Array, "G 4"],
    rois: Float[Array, "R 4"],
    gt_index: Int[Array, " R"],
    grid: RoIGrid,
) -> Float[Array, "R {grid.output_size} {grid.output_size}"]:
    """RoIAlign of `masks[gt_index[r]]` inside `rois[r]`: the coverage, in [0, 1], that the mask head should predict
    there.

    A mask is the coverage (0..255) of equal cells over `regions[g]`, in the coordinates of `rois`; outside its region
    it is 0. For a full bitmap, of region (0, 0, W, H), and adaptive sampling this is torchvision's
    `project_masks_on_boxes` (without `grid.aligned`), and Detectron2's `BitMasks.crop_and_resize` (with it) once it is
    thresholded at .5. On coarser cells `aligned=False` keeps the meaning it has on the bitmap, a shift by half a pixel.
    Padded RoIs and regions give finite values, to be ignored.
    """
    of_rois = regions[gt_index]
    weights_y, weights_x = (
        _target_weights(grid, of_rois[:, axis::2], rois[:, axis::2], masks.shape[2 - axis]) for axis in (1, 0)
    )

    def project(item):
        index, along_y, along_x = item
        return _separable(along_y, at_least_float32(masks[index]), along_x)

    chunk = max(1, _TARGET_CHUNK_CELLS // max(1, masks.shape[1] * masks.shape[2]))
    items = (gt_index, weights_y, weights_x)
    targets = jax.vmap(project)(items) if chunk >= rois.shape[0] else jax.lax.map(project, items, batch_size=chunk)
    return targets / 255.0


def _target_weights(
    grid: RoIGrid, regions: Float[Array, "R 2"], rois: Float[Array, "R 2"], length: int
) -> Float[Array, "R {grid.output_size} {length}"]:
    """Interpolation weights along an axis, on which regions have `length` cells; of both the extents are given."""
    start, end = rois[:, 0], rois[:, 1]
    region_start, side = regions[:, 0], regions[:, 1] - regions[:, 0]
    shift = 0.0
    if not grid.aligned:
        end, shift = jnp.maximum(end, start + 1), 0.5
    scale = length / jnp.where(side > 0, side, 1)

    def to_cells(position):
        return (position + shift - region_start) * scale - 0.5

    bounds = (jnp.maximum(to_cells(region_start), -1.0), jnp.minimum(to_cells(region_start + side), float(length)))
    extents = jnp.stack([to_cells(start), to_cells(end)], axis=1)
    return axis_weights(grid, extents, length, bounds)


def paste_masks(
    masks: Float[Array, "D M M"],
    boxes: Float[Array, "D 4"],
    canvas: tuple[int, int],
    convention: PasteConvention = "detectron2",
) -> Bool[Array, "D {canvas[0]} {canvas[1]}"]:
    """Bitmaps of `canvas` (height, width) from mask probabilities inside boxes in its pixels.

    "detectron2" samples the mask bilinearly at every pixel centre, with zeros outside, and keeps >= .5. "torchvision"
    pads the mask by one cell, grows the box accordingly, truncates it to whole pixels, resizes, and keeps > .5. Empty
    boxes, padded rows among them, give an empty bitmap. Takes memory for D bitmaps: hand over as many as there is room
    for.
    """
    weights = _paste_weights if convention == "detectron2" else _paste_weights_torchvision
    if convention == "torchvision":
        masks = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))

    def paste(item):
        mask, box = item
        side = mask.shape[0]
        along_y, along_x = weights(box[1], box[3], side, canvas[0]), weights(box[0], box[2], side, canvas[1])
        probabilities = _separable(along_y, mask, along_x)
        inside = probabilities >= 0.5 if convention == "detectron2" else probabilities > 0.5
        return inside & (box[2] > box[0]) & (box[3] > box[1])

    return jax.lax.map(paste, (at_least_float32(masks), boxes), batch_size=_PASTE_CHUNK)


def _paste_weights(start, end, side: int, length: int) -> Float[Array, "{length} {side}"]:
    """`grid_sample` along one axis: half-pixel centres, zeros outside."""
    extent = jnp.where(end > start, end - start, 1)
    at = (jnp.arange(length) + 0.5 - start) / extent * side - 0.5
    return jnp.maximum(1 - jnp.abs(at[:, None] - jnp.arange(side)), 0)


def _paste_weights_torchvision(start, end, side: int, length: int) -> Float[Array, "{length} {side}"]:
    """`interpolate` along one axis of a mask padded by 1 into the box grown likewise and truncated to whole pixels."""
    center, half = 0.5 * (start + end), 0.5 * (end - start) * (side / (side - 2))
    first, last = jnp.trunc(center - half), jnp.trunc(center + half)
    extent = jnp.maximum(last - first + 1, 1)
    pixel = jnp.arange(length) - first
    at = jnp.clip((pixel + 0.5) * side / extent - 0.5, 0, side - 1)
    weights = jnp.maximum(1 - jnp.abs(at[:, None] - jnp.arange(side)), 0)
    return jnp.where(((pixel >= 0) & (pixel < extent))[:, None], weights, 0)


def _separable(along_y: Float[Array, "P H"], mask: Float[Array, "H W"], along_x: Float[Array, "Q W"]):
    # Thresholds follow: the reduced precision that accelerators take for products by default would flip pixels.
    return jnp.einsum("ph,hw,qw->pq", along_y, mask, along_x, precision=EXACT)
