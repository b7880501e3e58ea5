"""Assigns anchors or proposals to ground-truth boxes by IoU.

Shape letters: `N` anchors or proposals, `G` ground-truth slots.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ops.loops import zero_of

_SLOTS_AT_ONCE = 8  # of ground truth; most images have few objects


class Matches(NamedTuple):
    """`gt_index` is meaningful where `label` is 1."""

    gt_index: Int[Array, "*B N"]
    label: Int[Array, "*B N"]  # 1 foreground, 0 background, -1 ignored


def match(
    iou: Float[Array, "N G"],
    gt_valid: Bool[Array, " G"],
    background: float = 0.3,
    foreground: float = 0.7,
    *,
    low_quality: bool,
) -> Matches:
    """The ground truth of the highest IoU, and what that IoU makes of the row (Faster R-CNN, section 3.1.2).

    An IoU below `background` is background, at or above `foreground` foreground, between them ignored. `low_quality`
    also makes foreground every row that ties the best IoU of some ground truth; such a row keeps its own argmax, and a
    ground truth that overlaps nothing promotes nothing. Padded ground truth is never matched: without valid ground
    truth every row is background.
    """
    num_rows, num_gt = iou.shape
    if num_gt == 0:
        zeros = jnp.zeros(num_rows, jnp.int32)
        return Matches(gt_index=zeros, label=zeros)
    best, gt_index, ties = _overlap(iou, gt_valid)
    return Matches(gt_index, _label(best, ties & low_quality, background, foreground))


def match_boxes(
    boxes: Float[Array, "N 4"],
    gt_boxes: Float[Array, "G 4"],
    gt_valid: Bool[Array, " G"],
    background: float = 0.3,
    foreground: float = 0.7,
    *,
    low_quality: bool,
) -> Matches:
    """`match` of the boxes' IoU, some slots of ground truth after the other, without those after the last valid one."""
    num_gt = gt_boxes.shape[0]
    padding = max(-num_gt % _SLOTS_AT_ONCE, _SLOTS_AT_ONCE - num_gt)  # to some at least
    gt_boxes, gt_valid = jnp.pad(gt_boxes, ((0, padding), (0, 0))), jnp.pad(gt_valid, (0, padding))
    used = jnp.max(jnp.where(gt_valid, jnp.arange(1, num_gt + padding + 1, dtype=jnp.int32), 0), initial=0)

    def add_slots(number: Int[Array, ""], so_far: _Overlap) -> _Overlap:
        begin = number * _SLOTS_AT_ONCE
        some, valid = (lax.dynamic_slice_in_dim(x, begin, _SLOTS_AT_ONCE) for x in (gt_boxes, gt_valid))
        here = _overlap(box_ops.pairwise_iou(boxes, some), valid)
        better = here.best > so_far.best  # of equal ones the first counts, as `argmax` has it
        return _Overlap(
            jnp.where(better, here.best, so_far.best),
            jnp.where(better, begin + here.gt_index, so_far.gt_index),
            so_far.ties | here.ties,
        )

    zeros = jnp.full(boxes.shape[0], zero_of(boxes, gt_boxes))
    nothing = _Overlap(zeros - 1, zeros.astype(jnp.int32), zeros > 0)
    best, gt_index, ties = lax.fori_loop(0, -(-used // _SLOTS_AT_ONCE), add_slots, nothing)
    return Matches(gt_index, _label(best, ties & low_quality, background, foreground))


class _Overlap(NamedTuple):
    best: Float[Array, " N"]  # IoU; -1 without valid ground truth
    gt_index: Int[Array, " N"]
    ties: Bool[Array, " N"]  # with the best IoU of some ground truth


def _overlap(iou: Float[Array, "N G"], gt_valid: Bool[Array, " G"]) -> _Overlap:
    iou = jnp.where(gt_valid, iou, -1.0)
    best_of_gt = jnp.max(iou, axis=0, initial=-1.0)
    ties = jnp.any((iou == best_of_gt) & (best_of_gt > 0), axis=1)
    return _Overlap(jnp.max(iou, axis=1), jnp.argmax(iou, axis=1).astype(jnp.int32), ties)


def _label(
    best: Float[Array, " N"], promoted: Bool[Array, " N"], background: float, foreground: float
) -> Int[Array, " N"]:
    label = jnp.where(best >= foreground, 1, jnp.where(best < background, 0, -1))
    return jnp.where(promoted, 1, label).astype(jnp.int32)
