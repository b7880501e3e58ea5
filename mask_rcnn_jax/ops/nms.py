"""Greedy non-maximum suppression, exact and free of host loops.

Shape letters: `N` boxes, `D` kept boxes, `Q` boxes of a block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mask_rcnn_jax.ops.boxes import pairwise_iou
from mask_rcnn_jax.ops.gpu import nms as packed

_BLOCK = 256  # measured: one N x N matrix is slower from about 1,000 boxes on


class Kept(NamedTuple):
    """Rows that survive, best score first; padding has index 0 and `valid` false."""

    indices: Int[Array, "*B D"]
    valid: Bool[Array, "*B D"]


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    valid: Bool[Array, " N"],
    iou_threshold: float,
    max_outputs: int,
    classes: Int[Array, " N"] | None = None,
) -> Kept:
    """Keeps a box unless one that is kept, of a higher score, overlaps it by more than `iou_threshold`.

    Exactly the greedy algorithm (`torchvision.ops.nms`); equal scores go to the lowest index. With `classes` only boxes
    of one class suppress each other (`batched_nms`, without its coordinate offsets). Padded rows neither suppress nor
    are kept. Works under `jax.vmap` and inside `jax.shard_map`; no gradient flows through it.
    """
    num_boxes = boxes.shape[0]
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    order = jnp.pad(order, (0, -num_boxes % min(_BLOCK, max(num_boxes, 1))))
    alive = valid[order] & (jnp.arange(order.shape[0]) < num_boxes)
    classes = None if classes is None else classes[order]
    keep = greedy_nms(boxes[order], alive, np.float32(iou_threshold), classes, iou_threshold=iou_threshold)
    slots = jnp.argsort(~keep, stable=True)[:max_outputs]
    slots_kept = keep[slots]
    missing = max_outputs - slots.shape[0]
    return Kept(
        indices=jnp.pad(jnp.where(slots_kept, order[slots], 0).astype(jnp.int32), (0, missing)),
        valid=jnp.pad(slots_kept, (0, missing)),
    )


@functools.partial(jax.jit, static_argnames="iou_threshold")
def greedy_nms(
    boxes: Float[Array, "N 4"],
    alive: Bool[Array, " N"],
    threshold: Float[ArrayLike, ""],
    classes: Int[Array, " N"] | None,
    *,
    iou_threshold: float,
) -> Bool[Array, " N"]:
    """Return the boxes that greedy suppression keeps, given them best score first and in whole blocks.

    A call by name, in whose place an exporter may put an operation of its own. For that alone it has the `threshold`
    twice: a static one is part of no equation.
    """
    operands = (boxes, alive) if classes is None else (boxes, alive, classes)

    def by_blocks(boxes: Array, alive: Array, classes: Array | None = None) -> Array:
        return _by_blocks(boxes, alive, iou_threshold, classes)

    def at_once(boxes: Array, alive: Array, classes: Array | None = None) -> Array:
        return packed.greedy(boxes, alive, iou_threshold, classes)

    # On CPU one set of boxes after the other: a map of the blocks over ten sets takes ten times as long.
    in_turn = sequential_vmap(by_blocks)
    elsewhere = {"cuda": at_once, "rocm": at_once, "tpu": at_once}
    return jax.lax.platform_dependent(*operands, cpu=in_turn, **elsewhere, default=by_blocks)


def _by_blocks(
    boxes: Float[Array, "N 4"], alive: Bool[Array, " N"], iou_threshold: float, classes: Int[Array, " N"] | None
) -> Bool[Array, " N"]:
    num_boxes = boxes.shape[0]
    block = min(_BLOCK, max(num_boxes, 1))
    keep = alive
    for start in range(0, num_boxes, block):
        # A block meets the boxes before it, whose fate is known, and then itself.
        end = start + block
        overlaps = pairwise_iou(boxes[:end], boxes[start:end]) > iou_threshold
        if classes is not None:
            overlaps &= classes[:end, None] == classes[None, start:end]
        candidates = keep[start:end] & ~jnp.any(overlaps[:start] & keep[:start, None], axis=0)
        keep = keep.at[start:end].set(_fixed_point(overlaps[start:], candidates))
    return keep


def _fixed_point(overlaps: Bool[Array, "Q Q"], candidates: Bool[Array, " Q"]) -> Bool[Array, " Q"]:
    """Iterates "kept unless a better box is kept that overlaps it" until nothing changes.

    After t rounds the first t boxes are right whatever follows, so the fixed point is unique and is the greedy answer;
    real boxes need a handful of rounds, chains of overlaps at most Q.
    """
    suppresses = jnp.triu(overlaps, k=1)

    def changed(state):
        keep, previous = state
        return jnp.any(keep != previous)

    def update(state):
        keep, _ = state
        return candidates & ~jnp.any(suppresses & keep[:, None], axis=0), keep

    # Both carries derive from an operand: inside shard_map a constant would not vary over the mesh as they do.
    return jax.lax.while_loop(changed, update, (candidates, ~candidates))[0]
