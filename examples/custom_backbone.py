"""A backbone of your own, in one file outside the package.

    mask-rcnn train --config examples/custom_backbone.py --workdir runs/custom
    mask-rcnn eval --workdir runs/custom --plugin examples/custom_backbone.py
    mask-rcnn export --checkpoint runs/custom --out model.stablehlo --plugin examples/custom_backbone.py

A checkpoint holds the backbone's name and settings, never its code: `--plugin` says where that is.
Shape letters: `B` images, `H W` height and width.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Annotated

import jax
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.models import BackboneConfig, Feature, FPNConfig
from mask_rcnn_jax.ranges import Channels, Range
from mask_rcnn_jax.training import ExperimentConfig


@dataclass(frozen=True)
class PlainConfig(BackboneConfig):
    """Nothing but 3x3 convolutions, each of which halves the sides."""

    width: Channels = 16  # of the first one; each has twice the channels of the one before
    depth: Annotated[int, Range(2, 7)] = 5

    @property
    def features(self) -> dict[str, Feature]:
        """The outputs of all convolutions but the first."""
        return {f"conv{i}": Feature(self.width * 2**i, 2 ** (i + 1)) for i in range(1, self.depth)}

    @property
    def size_divisor(self) -> int:
        return 2**self.depth

    def build(self, rngs: nnx.Rngs) -> "Plain":
        return Plain(self, rngs=rngs)


class Plain(nnx.Module):
    def __init__(self, config: PlainConfig, *, rngs: nnx.Rngs):
        self.names = tuple(config.features)
        channels = [3, *(config.width * 2**i for i in range(config.depth))]
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            setattr(self, f"conv{i}", nnx.Conv(before, after, (3, 3), strides=2, rngs=rngs))
            setattr(self, f"norm{i}", nnx.GroupNorm(after, num_groups=4, rngs=rngs))
        self.depth = config.depth

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _ _ _"]]:
        x, features = images, {}
        for i in range(self.depth):
            x = features[f"conv{i}"] = jax.nn.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
        return {name: features[name] for name in self.names}


def get_config() -> ExperimentConfig:
    """The configuration `shapes`, with this backbone under its pyramid."""
    config = shapes.get_config()
    return replace(config, model=replace(config.model, backbone=FPNConfig(PlainConfig(), channels=64)))
