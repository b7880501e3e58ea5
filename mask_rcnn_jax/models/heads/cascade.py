"""Cascade R-CNN (Cai and Vasconcelos 2018, https://arxiv.org/abs/1712.00726): box heads in a row.

Each stage refines the boxes of the one before and learns from a higher IoU. Shape letters: `R` RoIs, `G` ground-truth
slots.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.models.context import Inputs
from mask_rcnn_jax.models.heads.box import BoxHead, BoxHeadConfig, match_rois
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ranges import BoxWeights, Share
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs


@dataclass(frozen=True)
class CascadeConfig:
    """The stages that follow the box head, which is the first and must be class-agnostic."""

    foreground_ious: tuple[Share, ...] = (0.6, 0.7)
    box_weights: tuple[BoxWeights, ...] = ((20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

    def __post_init__(self) -> None:
        if len(self.foreground_ious) != len(self.box_weights):
            raise ValueError(
                f"foreground_ious and box_weights must be one for each stage, not {len(self.foreground_ious)} and"
                f" {len(self.box_weights)}"
            )

    def stages(self, first: BoxHeadConfig) -> tuple[BoxHeadConfig, ...]:
        """The configuration of every stage: the first, and what follows it."""
        following = zip(self.foreground_ious, self.box_weights, strict=True)
        return first, *(replace(first, foreground_iou=iou, box_weights=weights) for iou, weights in following)

    def build(self, first: BoxHeadConfig, inputs: Inputs, rngs: nnx.Rngs) -> "Cascade":
        return Cascade(self.stages(first)[1:], inputs, rngs=rngs)


class Cascade(nnx.Module):
    """The box heads `stage2`, `stage3`, ..."""

    def __init__(self, stages: tuple[BoxHeadConfig, ...], inputs: Inputs, *, rngs: nnx.Rngs):
        self.names = tuple(f"stage{number}" for number, _ in enumerate(stages, 2))
        for name, stage in zip(self.names, stages, strict=True):
            setattr(self, name, stage.build(inputs, rngs))

    @property
    def heads(self) -> tuple[BoxHead, ...]:
        return tuple(getattr(self, name) for name in self.names)


@jax.named_scope("refine")
def refine(
    config: BoxHeadConfig, boxes: Float[Array, "R 4"], box_deltas: Float[Array, "R 1 4"], image_size: Int[Array, "2"]
) -> Float[Array, "R 4"]:
    """The boxes that a stage makes of its RoIs, clipped to the image, for the next one. No gradient flows through."""
    refined = box_ops.decode(jax.lax.stop_gradient(box_deltas[:, 0]), boxes, config.box_weights)
    return box_ops.clip(refined, image_size)


@jax.named_scope("relabel")
def relabel(
    config: BoxHeadConfig,
    num_classes: int,
    boxes: Float[Array, "R 4"],
    valid: Bool[Array, " R"],
    truth: GroundTruth,
) -> SampledRoIs:
    """Matches the refined boxes of one image again, at the stage's IoU. Boxes that became empty are left out.

    Nothing is drawn: foreground may stand in any slot.
    """
    matches = match_rois(config, boxes, truth)
    valid = valid & box_ops.nonempty(boxes)
    foreground = valid & (matches.label == 1)
    return SampledRoIs(
        boxes=jnp.where(valid[:, None], boxes, 0.0),
        gt_index=matches.gt_index,
        classes=jnp.where(foreground, truth.classes[matches.gt_index], num_classes),
        foreground=foreground,
        valid=valid,
    )


def scale_gradient(x: Float[Array, "*S"], factor: float) -> Float[Array, "*S"]:
    """`x` itself, with its gradient times `factor`: the shared features get the mean of the stages' gradients."""
    fixed = jax.lax.stop_gradient(x)
    return fixed + factor * (x - fixed)
