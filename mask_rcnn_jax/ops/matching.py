"""Assigns anchors or proposals to ground-truth boxes by IoU.

Shape letters: `N` anchors or proposals, `G` ground-truth slots.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
    iou = jnp.where(gt_valid, iou, -1.0)
    gt_index = jnp.argmax(iou, axis=1).astype(jnp.int32)
    best = jnp.max(iou, axis=1)
    label = jnp.where(best >= foreground, 1, jnp.where(best < background, 0, -1))
    if low_quality:
        best_of_gt = jnp.max(iou, axis=0, initial=-1.0)
        ties = (iou == best_of_gt) & (best_of_gt > 0)
        label = jnp.where(jnp.any(ties, axis=1), 1, label)
    return Matches(gt_index=gt_index, label=label.astype(jnp.int32))
