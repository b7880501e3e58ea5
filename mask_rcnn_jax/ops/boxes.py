"""Boxes as `(x1, y1, x2, y2)` in continuous pixels: geometry and the coding of box deltas.

Shape letters: `N M` boxes. A padded row is a box of zeros: its area and IoU are 0, and every function here gives finite
values and finite gradients for it.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from mask_rcnn_jax.ops.precision import at_least_float32

MAX_LOG_SCALE = math.log(1000 / 16)  # decoding never grows a reference more than 62.5 times


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Area in square pixels; 0 for a box of a negative side."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Intersection over union of every pair; 0 where either box is empty, as padded rows are."""
    top_left = jnp.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return intersection / jnp.where(union > 0, union, 1)


def paired_iou(a: Float[Array, "N 4"], b: Float[Array, "N 4"]) -> Float[Array, " N"]:
    """Intersection over union of row i of `a` with row i of `b`; 0 where either box is empty."""
    corners = jnp.concatenate([jnp.maximum(a[:, :2], b[:, :2]), jnp.minimum(a[:, 2:], b[:, 2:])], axis=1)
    intersection = area(corners)
    union = area(a) + area(b) - intersection
    return intersection / jnp.where(union > 0, union, 1)


def clip(boxes: Float[Array, "*batch 4"], image_size: Num[Array, "2"]) -> Float[Array, "*batch 4"]:
    """Moves corners into an image of `image_size` (height, width)."""
    limit = jnp.stack([image_size[1], image_size[0]] * 2).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limit)


def nonempty(boxes: Float[Array, "*batch 4"], min_size: float = 0.0) -> Bool[Array, "*batch"]:
    """Return whether both sides exceed `min_size` pixels; False for padded rows."""
    return jnp.all(boxes[..., 2:] - boxes[..., :2] > min_size, axis=-1)


def encode(
    boxes: Float[Array, "*batch 4"],
    references: Float[Array, "*batch 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*batch 4"]:
    """Deltas `(dx, dy, dw, dh)` that take `references` to `boxes` (R-CNN, appendix C), times `weights`.

    The shift is in sides of the reference, the scale is a natural logarithm. A side that is not positive counts as 1,
    so that padded rows stay finite.
    """
    size, center = _positive(boxes[..., 2:] - boxes[..., :2]), _center(boxes)
    reference_size = _positive(references[..., 2:] - references[..., :2])
    shift = (center - _center(references)) / reference_size
    deltas = jnp.concatenate([shift, jnp.log(size / reference_size)], axis=-1)
    return deltas * jnp.asarray(weights, deltas.dtype)


def decode(
    deltas: Float[Array, "*batch 4"],
    references: Float[Array, "*batch 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*batch 4"]:
    """Boxes that `deltas` make of `references`: the inverse of `encode`, with `dw, dh` at most log(1000 / 16).

    Computed in float32 or wider whatever the deltas are. A padded reference gives an empty box.
    """
    deltas = at_least_float32(deltas)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    reference_size = references[..., 2:] - references[..., :2]
    center = _center(references) + deltas[..., :2] * reference_size
    half = 0.5 * reference_size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return jnp.concatenate([center - half, center + half], axis=-1)


def _center(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 2"]:
    return 0.5 * (boxes[..., :2] + boxes[..., 2:])


def _positive(sides: Float[Array, "*batch 2"]) -> Float[Array, "*batch 2"]:
    # Guards the *input* of log and division: selecting their output afterwards would leave NaN in the gradient.
    return jnp.where(sides > 0, sides, 1)
