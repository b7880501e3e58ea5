"""ResNet backbones (He et al. 2016, https://arxiv.org/abs/1512.03385).

Features are named `res2` to `res5`, with strides 4 to 32. Shape letters: `B` images, `H W` height and width.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.models.layers import ConvNorm, NormConfig, freeze

STAGES = ("res2", "res3", "res4", "res5")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@dataclass(frozen=True)
class ResNetConfig:
    depth: Literal[18, 34, 50, 101] = 50
    width: int = 64  # channels of the stem and of res2's 3x3 convolutions; doubles each stage
    norm: NormConfig = NormConfig()
    stride_in_1x1: bool = True  # bottlenecks: True for Detectron2's MSRA weights, False for torchvision's
    freeze_at: int = 2  # 0 trains everything, 1 freezes the stem, 2 also res2, and so on up to 5

    @property
    def is_bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def out_strides(self) -> dict[str, int]:
        return {name: 4 * 2**i for i, name in enumerate(STAGES)}

    @property
    def out_channels(self) -> dict[str, int]:
        expansion = 4 if self.is_bottleneck else 1
        return {name: self.width * 2**i * expansion for i, name in enumerate(STAGES)}

    def build(self, rngs: nnx.Rngs) -> "ResNet":
        return ResNet(self, rngs=rngs)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormConfig, rngs: nnx.Rngs) -> ConvNorm | None:
    """The projection of a block that changes the shape of its input; None where the input itself is added."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm, rngs=rngs)


class BasicBlock(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs):
        norm = config.norm
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm, rngs=rngs)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm, rngs=rngs)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))) + shortcut)


class BottleneckBlock(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs):
        middle, norm = out_channels // 4, config.norm
        strides = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, middle, 1, stride=strides[0], norm=norm, rngs=rngs)
        self.conv2 = ConvNorm(middle, middle, 3, stride=strides[1], norm=norm, rngs=rngs)
        self.conv3 = ConvNorm(middle, out_channels, 1, norm=norm, rngs=rngs)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = jax.nn.relu(self.conv1(x))
        x = jax.nn.relu(self.conv2(x))
        return jax.nn.relu(self.conv3(x) + shortcut)


class Stage(nnx.Module):
    """Blocks `block1`, `block2`, ...; the first one strides."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int, config: ResNetConfig, rngs):
        block_type = BottleneckBlock if config.is_bottleneck else BasicBlock
        self.blocks = blocks
        for i in range(blocks):
            block = block_type(in_channels, out_channels, stride if i == 0 else 1, config, rngs=rngs)
            setattr(self, f"block{i + 1}", block)
            in_channels = out_channels

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        for i in range(self.blocks):
            x = getattr(self, f"block{i + 1}")(x)
        return x


class ResNet(nnx.Module):
    """Returns the features `res2` to `res5`."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.stem = ConvNorm(3, config.width, 7, stride=2, norm=config.norm, rngs=rngs)
        in_channels = config.width
        for name, blocks in zip(STAGES, BLOCKS[config.depth], strict=True):
            out_channels = config.out_channels[name]
            stride = 1 if name == "res2" else 2
            setattr(self, name, Stage(in_channels, out_channels, blocks, stride, config, rngs))
            in_channels = out_channels
        for name in ("stem", *STAGES)[: config.freeze_at]:
            freeze(getattr(self, name))

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _ _ _"]]:
        x = jax.nn.relu(self.stem(images))
        # After a ReLU a border of zeros never wins, so it may stand for the one of minus infinity.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
        features = {}
        for name in STAGES:
            x = features[name] = getattr(self, name)(x)
        return features
