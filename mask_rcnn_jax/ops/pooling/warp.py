"""Crops of RoIs that are warped to squares, with context around them (R-CNN, appendix A).

Shape letters: `B` images, `H W` their sides, `R` RoIs of an image, `P` side of a crop, `C` channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mask_rcnn_jax.ops.pooling.points import grid_points, place_in_boxes, sample_points


def warp(
    images: Float[Array, "B H W C"], rois: Float[Array, "B R 4"], side: int, context: int
) -> Float[Array, "B R P P C"]:
    """Resample each RoI, in cells of its image, to `side` x `side` pixels, the outer `context` of them from around it.

    Values are interpolated between the four nearest pixels, whatever the scale; beyond the image there are zeros, the
    mean of pixels that are normalised, also between the centres of the outermost pixels and the edge. Padded RoIs give
    finite values. Differentiable in `images` only (reverse mode).
    """
    boxes = around(rois, side, context)
    points = place_in_boxes(jnp.broadcast_to(grid_points(side), (*rois.shape[:2], side * side, 2)), boxes)
    at = jnp.broadcast_to(jnp.arange(images.shape[0])[:, None, None], points.shape[:3])
    sampled = sample_points(images, at.reshape(-1), points.reshape(-1, 2))
    return sampled.reshape(*rois.shape[:2], side, side, images.shape[-1])


def around(rois: Float[Array, "*B 4"], side: int, context: int) -> Float[Array, "*B 4"]:
    """Return what a crop shows whose inner `side` - 2 `context` pixels are the RoI."""
    margin = (rois[..., 2:] - rois[..., :2]) * (context / (side - 2 * context))
    return jnp.concatenate([rois[..., :2] - margin, rois[..., 2:] + margin], axis=-1)
