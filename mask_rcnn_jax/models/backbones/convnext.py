"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545), as torchvision has it.

Features are named `stage1` to `stage4`, with strides 4 to 32. Shape letters: `B` images, `H W` height and width, `C`
channels, `I O` channels in and out.
"""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature, built_stages
from mask_rcnn_jax.models.layers import Conv, call
from mask_rcnn_jax.models.layers.drop_path import drop_path, rates_of_blocks
from mask_rcnn_jax.models.layers.initialisers import normal_init
from mask_rcnn_jax.models.layers.norms import freeze
from mask_rcnn_jax.ops.conv import Window
from mask_rcnn_jax.ranges import AddedLater, AtLeastZero, BelowOne, Channels, Positive, Range

STAGES = ("stage1", "stage2", "stage3", "stage4")
_init = normal_init(0.02)
_norm = functools.partial(nnx.LayerNorm, epsilon=1e-6, use_fast_variance=False)


@dataclass(frozen=True)
class ConvNeXtConfig(BackboneConfig):
    """ConvNeXt-T; the others have other `depths` and `channels`."""

    depths: tuple[Positive, Positive, Positive, Positive] = (3, 3, 9, 3)  # S and B: (3, 3, 27, 3)
    channels: tuple[Channels, Channels, Channels, Channels] = (96, 192, 384, 768)  # B: (128, 256, 512, 1024)
    layer_scale: AtLeastZero = 1e-6  # of what a block adds to what it passes on, at first
    feature_norms: bool = True  # a norm of each feature, which detectors have and classifiers have not
    out_features: tuple[str, ...] = STAGES  # nothing beyond the last of them is built
    freeze_at: Annotated[int, Range(0, 5)] = 0  # 0 trains everything, 1 freezes the stem, 2 also stage1, and so on
    # The share of images for which the last block is left out in training; it rises from 0 in the first one.
    drop_path: Annotated[BelowOne, AddedLater()] = 0.0  # published: .1 for T, .4 for S, .5 for B

    def __post_init__(self) -> None:
        built_stages(STAGES, self.out_features)  # raises where they are none

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are built."""
        return built_stages(STAGES, self.out_features)

    @property
    def features(self) -> dict[str, Feature]:
        numbers = {name: STAGES.index(name) for name in STAGES if name in self.out_features}
        return {name: Feature(self.channels[number], 4 * 2**number) for name, number in numbers.items()}

    @property
    def size_divisor(self) -> int:
        return 4 * 2 ** STAGES.index(self.stages[-1])

    @property
    def draws(self) -> bool:
        return self.drop_path > 0

    def build(self, rngs: nnx.Rngs) -> "ConvNeXt":
        return ConvNeXt(self, rngs=rngs)


class Block(nnx.Module):
    """A depthwise convolution, and a perceptron at every place, added to what came in."""

    recomputed = False

    def __init__(self, channels: int, layer_scale: float, number: int, rate: float, *, rngs: nnx.Rngs):
        self.number, self.rate = number, rate  # of the block in the network, and at which it is left out
        self.depthwise = _conv((7, 7, 1, channels), Window(padding=3), channels, rngs)
        self.norm = _norm(channels, rngs=rngs)
        self.expand = nnx.Linear(channels, 4 * channels, kernel_init=_init, rngs=rngs)
        self.contract = nnx.Linear(4 * channels, channels, kernel_init=_init, rngs=rngs)
        self.scale = nnx.Param(jnp.full(channels, layer_scale))

    def __call__(self, x: Float[Array, "B H W C"], keys: Key[Array, " B"] | None) -> Float[Array, "B H W C"]:
        y = self.expand(self.norm(self.depthwise(x)))
        y = self.contract(jax.nn.gelu(y, approximate=False))
        return x + drop_path(y * self.scale[...].astype(x.dtype), self.rate, keys, self.number)


class Stage(nnx.Module):
    """Halves the sides, except in the first one, and applies `block1`, `block2`, ..."""

    def __init__(self, config: ConvNeXtConfig, name: str, *, rngs: nnx.Rngs):
        number = STAGES.index(name)
        channels, self.blocks = config.channels[number], config.depths[number]
        self.downsample = Downsample(config.channels[number - 1], channels, rngs=rngs) if number else None
        rates = rates_of_blocks(config.drop_path, sum(config.depths))
        for i in range(self.blocks):
            block = sum(config.depths[:number]) + i
            setattr(self, f"block{i + 1}", Block(channels, config.layer_scale, block, rates[block], rngs=rngs))

    def __call__(self, x: Float[Array, "B H W I"], keys: Key[Array, " B"] | None) -> Float[Array, "B H2 W2 O"]:
        if self.downsample is not None:
            x = self.downsample(x)
        for i in range(self.blocks):
            x = call(getattr(self, f"block{i + 1}"), x, keys)
        return x


class Downsample(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.norm = _norm(in_channels, rngs=rngs)
        self.conv = _conv((2, 2, in_channels, out_channels), Window(stride=2), 1, rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H/2 W/2 O"]:
        return self.conv(self.norm(x))


class Stem(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv((4, 4, 3, channels), Window(stride=4), 1, rngs)
        self.norm = _norm(channels, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H/4 W/4 C"]:
        return self.norm(self.conv(images))


class ConvNeXt(nnx.Module):
    """Returns the features named in `ConvNeXtConfig.out_features`."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        self.stages, self.out_features = config.stages, tuple(config.features)
        self.stem = Stem(config.channels[0], rngs=rngs)
        for name in config.stages:
            setattr(self, name, Stage(config, name, rngs=rngs))
        for name in config.features if config.feature_norms else ():
            setattr(self, f"norm_{name}", _norm(config.features[name].channels, rngs=rngs))
        for name in ("stem", *config.stages)[: config.freeze_at]:
            freeze(getattr(self, name))

    def __call__(
        self, images: Float[Array, "B H W 3"], keys: Key[Array, " B"] | None = None
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        with jax.named_scope("stem"):
            x = self.stem(images)
        features = {}
        for name in self.stages:
            with jax.named_scope(name):
                x = getattr(self, name)(x, keys)
                norm = getattr(self, f"norm_{name}", None)
                features[name] = x if norm is None else norm(x)
        return {name: features[name] for name in self.out_features}


def _conv(shape: tuple[int, int, int, int], window: Window, groups: int, rngs: nnx.Rngs) -> Conv:
    return Conv(shape, window, groups, use_bias=True, init=_init, rngs=rngs)
