"""Losses of boxes that are made of references, such as anchors and RoIs, by box deltas.

Either of the deltas themselves, or of how the boxes overlap: GIoU (Rezatofighi et al. 2019,
https://arxiv.org/abs/1902.09630), DIoU and CIoU (Zheng et al. 2020, https://arxiv.org/abs/1911.08287), as Detectron2
and torchvision compute them. Shape letter: `N` boxes.
"""

import math
from typing import Literal, Protocol, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mask_rcnn_jax.models.losses import smooth_l1
from mask_rcnn_jax.ops import boxes as box_ops

OverlapLoss = Literal["giou", "diou", "ciou"]
BoxLoss = Literal["smooth_l1", OverlapLoss]

_EPSILON = 1e-7  # of every denominator, as in the references


@runtime_checkable
class BoxLossSettings(Protocol):
    """The settings of whatever learns boxes."""

    @property
    def box_weights(self) -> tuple[float, float, float, float]:
        """Return the weights of deltas."""
        ...

    @property
    def box_loss(self) -> BoxLoss:
        """Return the kind of loss."""
        ...

    @property
    def box_loss_weight(self) -> float:
        """Return the factor of the loss."""
        ...

    @property
    def smooth_l1_beta(self) -> float:
        """Return where a loss of deltas passes from a square to a line."""
        ...


def box_regression_loss(
    config: BoxLossSettings,
    deltas: Float[Array, "N 4"],
    references: Float[Array, "N 4"],
    gt_boxes: Float[Array, "N 4"],
    counted: Bool[Array, " N"],
) -> Float[Array, ""]:
    """Sum the losses of the `counted` boxes that `deltas` make of `references`.

    Rows that are not counted, such as padding, have no gradient, whatever their boxes are.
    """
    if config.box_loss == "smooth_l1":
        gt_deltas = box_ops.encode(gt_boxes, references, config.box_weights)
        error = jnp.where(counted[:, None], deltas - gt_deltas, 0.0)
        total = jnp.sum(smooth_l1(error, config.smooth_l1_beta))
    else:
        deltas = jnp.where(counted[:, None], deltas, 0.0)
        boxes = box_ops.decode(deltas, references, config.box_weights)
        total = jnp.sum(jnp.where(counted, overlap_loss(config.box_loss, boxes, gt_boxes), 0.0))
    return total if config.box_loss_weight == 1.0 else config.box_loss_weight * total


def overlap_loss(kind: OverlapLoss, boxes: Float[Array, "N 4"], gt_boxes: Float[Array, "N 4"]) -> Float[Array, " N"]:
    """Compute the loss of each box beside its ground truth: 0 where they are equal, at most 2 (CIoU: 3).

    Empty boxes and padded rows, all zeros, have finite losses and gradients.
    """
    inner = jnp.minimum(boxes[:, 2:], gt_boxes[:, 2:]) - jnp.maximum(boxes[:, :2], gt_boxes[:, :2])
    outer = jnp.maximum(boxes[:, 2:], gt_boxes[:, 2:]) - jnp.minimum(boxes[:, :2], gt_boxes[:, :2])
    size, gt_size = boxes[:, 2:] - boxes[:, :2], gt_boxes[:, 2:] - gt_boxes[:, :2]
    intersection = jnp.where(jnp.all(inner > 0, axis=1), _product(inner), 0.0)
    union = _product(size) + _product(gt_size) - intersection
    iou = intersection / (union + _EPSILON)
    if kind == "giou":
        around = _product(outer)
        return 1 - (iou - (around - union) / (around + _EPSILON))
    apart = (boxes[:, :2] + boxes[:, 2:]) / 2 - (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    diou = 1 - iou + jnp.sum(apart**2, axis=1) / (jnp.sum(outer**2, axis=1) + _EPSILON)
    if kind == "diou":
        return diou
    if kind == "ciou":
        shape = 4 / math.pi**2 * (_angle(gt_size) - _angle(size)) ** 2
        weight = jax.lax.stop_gradient(shape / (1 - iou + shape + _EPSILON))
        return diou + weight * shape
    assert_never(kind)


def _product(sides: Float[Array, "N 2"]) -> Float[Array, " N"]:
    return sides[:, 0] * sides[:, 1]


def _angle(size: Float[Array, "N 2"]) -> Float[Array, " N"]:
    """The arc tangent of width / height. Of no height its gradient is finite, and no size at all counts as a square."""
    empty = jnp.all(size == 0, axis=1)
    width, height = (jnp.where(empty, 1.0, size[:, i]) for i in range(2))
    return jnp.arctan2(width, height)
