"""A head of your own, in one file outside the package: how much of its box an instance fills.

    mask-rcnn train --config examples/custom_head.py --workdir runs/fill
    mask-rcnn predict photo.jpg --checkpoint runs/fill --plugin examples/custom_head.py --out found

It learns from the masks, and every detection has the number `fill` besides its box, score and class: in Python, in the
files that are written, and in exported models. Shape letters: `B` images, `R` RoIs, `D` detection slots, `P` side of
the pooled grid, `C` channels.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.models import Context, Head, HeadConfig, Inputs, Keys, PoolerConfig, RoIPoolerConfig, Terms
from mask_rcnn_jax.models.layers import call
from mask_rcnn_jax.models.losses import binary_cross_entropy, masked_mean
from mask_rcnn_jax.ranges import Channels
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs
from mask_rcnn_jax.training import ExperimentConfig


@dataclass(frozen=True)
class FillConfig(HeadConfig):
    """Two layers on pooled features."""

    name: ClassVar[str] = "fill"
    needs: ClassVar[Literal["masks"]] = "masks"

    pooler: RoIPoolerConfig = PoolerConfig(output_size=7)
    channels: Channels = 64

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "Fill":
        return Fill(self, inputs.of_rois(self.pooler)[0], rngs=rngs)


class Fill(Head):
    def __init__(self, config: FillConfig, in_channels: int, *, rngs: nnx.Rngs):
        self.pooler = config.pooler
        self.hidden = nnx.Linear(in_channels, config.channels, rngs=rngs)
        self.logit = nnx.Linear(config.channels, 1, rngs=rngs)

    def __call__(self, roi_features: Float[Array, "B R P P C"]) -> Float[Array, "B R"]:
        x = jax.nn.relu(self.hidden(jnp.mean(roi_features, axis=(2, 3))))
        return self.logit(x)[..., 0].astype(jnp.float32)

    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        logits = context.observe("fill logits", call(self, context.pool(self.pooler, rois.boxes)))
        fill = jnp.mean(truth.masks / 255.0, axis=(2, 3))  # a mask covers its box, from 0 to 255
        losses = binary_cross_entropy(logits, jnp.take_along_axis(fill, rois.gt_index, axis=1))
        return {"loss/fill": jax.vmap(masked_mean)(losses, rois.foreground)}

    def answer(self, context: Context, found: PaddedDetections) -> Float[Array, "B D"]:
        return jax.nn.sigmoid(self(context.pool(self.pooler, found.boxes)))

    def add(self, found: PaddedDetections, answer: Float[Array, "B D"]) -> PaddedDetections:
        return replace(found, extras=found.extras | {"fill": jnp.where(found.valid, answer, 0.0)})

    def unmirrored(self, answer: Any, keypoints: tuple[int, ...]) -> Any:
        return answer  # a mirror changes nothing


def get_config() -> ExperimentConfig:
    """The configuration `shapes`, with this head."""
    config = shapes.get_config()
    return replace(config, model=replace(config.model, heads=(FillConfig(),)))
