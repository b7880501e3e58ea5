"""VGG (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556), the backbone of Fast and Faster R-CNN.

Features are named `conv1` to `conv5`, each what a stage makes before it is pooled, with strides 1 to 16, and `pool5`,
conv5 pooled; what follows is left to the box head. Shape letters: `B` images, `H W` height and width, `I O` channels in
and out.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature, built_stages
from mask_rcnn_jax.models.layers import ConvNorm, Kernel, call, max_pool
from mask_rcnn_jax.models.layers.norms import NormConfig, freeze
from mask_rcnn_jax.ranges import Channels, Range

STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")
_FEATURES = (*STAGES, "pool5")
CONVOLUTIONS = {  # of each stage
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


@dataclass(frozen=True)
class VGGConfig(BackboneConfig):
    depth: Literal[11, 13, 16, 19] = 16
    width: Channels = 64  # channels of conv1; x 2 each stage up to conv4, and conv5 has as many as conv4
    norm: NormConfig = NormConfig(kind="none")  # batch_norm, or frozen_batch_norm: torchvision's vgg16_bn
    out_features: tuple[str, ...] = ("conv5",)  # nothing beyond the last of them is built
    freeze_at: Annotated[int, Range(0, 5)] = 2  # 0 trains everything, 1 freezes conv1, 2 also conv2, and so on

    def __post_init__(self) -> None:
        for name in self.stages:  # raises where features are none
            self.norm.check_channels(f"the width of {name}", self.stage_channels(name))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are built."""
        return built_stages(_FEATURES, self.out_features)[: len(STAGES)]

    @property
    def features(self) -> dict[str, Feature]:
        names = [name for name in _FEATURES if name in self.out_features]
        return {name: Feature(self.stage_channels(name), 2 ** _FEATURES.index(name)) for name in names}

    @property
    def size_divisor(self) -> int:
        return 2 ** max(map(_FEATURES.index, self.out_features))

    def stage_channels(self, name: str) -> int:
        return self.width * 2 ** min(_FEATURES.index(name), 3)

    def build(self, rngs: nnx.Rngs) -> "VGG":
        return VGG(self, rngs=rngs)


class Stage(nnx.Module):
    """Convolutions `conv1`, `conv2`, ..., each with its norm and a rectifier."""

    recomputed = False

    def __init__(self, config: VGGConfig, name: str, in_channels: int, *, rngs: nnx.Rngs):
        self.convolutions = CONVOLUTIONS[config.depth][STAGES.index(name)]
        channels = config.stage_channels(name)
        for i in range(self.convolutions):
            setattr(self, f"conv{i + 1}", ConvNorm(in_channels, channels, Kernel(3), norm=config.norm, rngs=rngs))
            in_channels = channels

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        for i in range(self.convolutions):
            x = jax.nn.relu(getattr(self, f"conv{i + 1}")(x))
        return x


class VGG(nnx.Module):
    """Returns the features named in `VGGConfig.out_features`."""

    def __init__(self, config: VGGConfig, *, rngs: nnx.Rngs):
        self.stages, self.out_features = config.stages, tuple(config.features)
        in_channels = 3
        for name in config.stages:
            setattr(self, name, Stage(config, name, in_channels, rngs=rngs))
            in_channels = config.stage_channels(name)
        for name in config.stages[: config.freeze_at]:
            freeze(getattr(self, name))

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _ _ _"]]:
        x, features = images, {}
        for name in self.stages:
            with jax.named_scope(name):
                x = features[name] = call(getattr(self, name), max_pool(x, 2) if features else x)
        if "pool5" in self.out_features:
            features["pool5"] = max_pool(x, 2)
        return {name: features[name] for name in self.out_features}
