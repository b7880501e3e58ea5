"""Soft-NMS (Bodla et al. 2017, https://arxiv.org/abs/1704.04503): overlapping boxes lose score instead of their place.

Shape letters: `N` boxes, `D` kept boxes.
"""

from typing import Literal, NamedTuple, assert_never

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops.boxes import pairwise_iou

Decay = Literal["linear", "gaussian"]


class Rescored(NamedTuple):
    """Rows that are kept, best first by the scores that they are left with; padding is zero and `valid` false."""

    indices: Int[Array, "*B D"]
    scores: Float[Array, "*B D"]
    valid: Bool[Array, "*B D"]


def soft_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    valid: Bool[Array, " N"],
    max_outputs: int,
    *,
    decay: Decay,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    classes: Int[Array, " N"] | None = None,
) -> Rescored:
    """Take the box of the best score, lower the scores of the others by their IoU with it, and so on.

    With the decay `linear` a score is multiplied by 1 - IoU where that exceeds `iou_threshold`, with `gaussian` by
    exp(-IoU^2 / `sigma`) wherever they overlap. It ends after `max_outputs` boxes, or where no score above `min_score`,
    which is at least 0, is left. Equal scores go to the lowest index; with `classes` only boxes of one class lower each
    other's. Padded rows neither lower a score nor are kept. Works under `jax.vmap` and inside `jax.shard_map`; no
    gradient is meant to flow through it.
    """
    if not boxes.shape[0]:
        return Rescored(*(jnp.zeros(max_outputs, dtype) for dtype in (jnp.int32, scores.dtype, bool)))

    def take(
        left: tuple[Float[Array, " N"], Bool[Array, " N"]], _: None
    ) -> tuple[tuple[Float[Array, " N"], Bool[Array, " N"]], Rescored]:
        scores, alive = left
        best = jnp.argmax(jnp.where(alive, scores, -1.0)).astype(jnp.int32)
        kept = alive[best] & (scores[best] > min_score)
        iou = pairwise_iou(boxes[best][None], boxes)[0]
        if decay == "linear":
            factor = jnp.where(iou > iou_threshold, 1 - iou, 1.0)
        elif decay == "gaussian":
            factor = jnp.exp(-(iou**2) / sigma)
        else:
            assert_never(decay)
        if classes is not None:
            factor = jnp.where(classes == classes[best], factor, 1.0)
        taken = Rescored(jnp.where(kept, best, 0), jnp.where(kept, scores[best], 0.0), kept)
        return (scores * factor, alive & (jnp.arange(len(alive)) != best)), taken

    _, taken = jax.lax.scan(take, (scores, valid), None, length=max_outputs)
    return taken
