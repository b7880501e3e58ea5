"""Greedy non-maximum suppression as one loop: the form for accelerators.

Which box overlaps which is computed once, a bit a pair; the loop reads nothing else. Each turn of a loop of unknown
length waits for the host on a GPU, so that a turn holds several rounds.

Shape letters: `N` boxes, `W` words of 32 of them.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from mask_rcnn_jax.ops.boxes import area as area_of

_ROUNDS = 4  # of a turn
_BITS = 32


def greedy(
    boxes: Float[Array, "N 4"], alive: Bool[Array, " N"], iou_threshold: float, classes: Int[Array, " N"] | None
) -> Bool[Array, " N"]:
    """Return the boxes that greedy suppression keeps, given them best score first.

    Iterates "kept unless a better box is kept that overlaps it" until nothing changes, as `ops.nms` does in blocks.
    """
    suppresses = _suppresses(boxes, iou_threshold, classes)

    def round_of(keep: Bool[Array, " N"]) -> Bool[Array, " N"]:
        return alive & ~jnp.any(suppresses & _joined(_in_words(keep))[:, None] != 0, axis=0)

    def changed(state):
        keep, previous = state
        return jnp.any(keep != previous)

    def turn(state):
        before, _ = state
        keep = before
        for _ in range(_ROUNDS):
            keep = round_of(keep)
        return keep, before

    # The rounds have one fixed point, which they reach from anywhere: what returns after a turn has stayed within it.
    # Both carries derive from an operand: inside shard_map a constant would not vary over the mesh as they do.
    return lax.while_loop(changed, turn, (alive, ~alive))[0]


def _suppresses(
    boxes: Float[Array, "N 4"], iou_threshold: float, classes: Int[Array, " N"] | None
) -> UInt32[Array, "W N"]:
    """Return which better boxes, a bit each, overlap each box."""
    row = jnp.arange(len(boxes))
    left, top, right, bottom, area, place = (_in_words(x)[..., None] for x in (*boxes.T, area_of(boxes), row))
    # As `boxes.pairwise_iou`, but by columns: of corners as pairs XLA keeps the areas of all intersections in memory.
    width = jnp.maximum(jnp.minimum(right, boxes[:, 2]) - jnp.maximum(left, boxes[:, 0]), 0)
    height = jnp.maximum(jnp.minimum(bottom, boxes[:, 3]) - jnp.maximum(top, boxes[:, 1]), 0)
    intersection = width * height
    union = area + area_of(boxes) - intersection
    overlaps = intersection / jnp.where(union > 0, union, 1) > iou_threshold
    if classes is not None:
        overlaps &= _in_words(classes)[..., None] == classes
    return _joined(overlaps & (place < row))


def _in_words(rows: Shaped[Array, "N *rest"]) -> Shaped[Array, "32 W *rest"]:
    """Row i is bit i // W of word i % W, so that neighbours are read together; filled up with zeros."""
    words = -(-len(rows) // _BITS)
    padded = jnp.pad(rows, [(0, words * _BITS - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    return padded.reshape(_BITS, words, *rows.shape[1:])


def _joined(bits: Bool[Array, "32 W *rest"]) -> UInt32[Array, "W *rest"]:
    place = jnp.arange(_BITS, dtype=jnp.uint32).reshape(-1, *[1] * (bits.ndim - 1))
    return jnp.sum(bits.astype(jnp.uint32) << place, axis=0, dtype=jnp.uint32)
