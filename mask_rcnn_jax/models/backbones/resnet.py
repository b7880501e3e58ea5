"""ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385) and ResNeXt (Xie et al. 2017,
https://arxiv.org/abs/1611.05431) backbones.

Features are named `res2` to `res5`, with strides 4 to 32 (16 for a dilated res5).
Shape letters: `B` images, `H W` height and width.
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

STAGES = ("res2", "res3", "res4", "res5")
BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True)
class ResNetConfig(BackboneConfig):
    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    # res2 has this many channels in basic blocks and four times as many in bottlenecks; x 2 each stage.
    width: Channels = 64
    stem_width: Channels | None = None  # channels of the stem; None: `width`
    groups: Channels = 1  # of the 3x3 convolutions of bottlenecks; ResNeXt has 32
    width_per_group: Channels | None = None  # channels of a group in res2; None: `width` in all groups together
    norm: NormConfig = NormConfig()
    stride_in_1x1: bool = True  # bottlenecks: True for Detectron2's MSRA weights, False for torchvision's
    res5_dilation: Literal[1, 2] = 1  # 2 keeps res5 at stride 16 (DC5)
    out_features: tuple[str, ...] = STAGES  # nothing beyond the last of them is built
    freeze_at: Annotated[int, Range(0, 5)] = 2  # 0 trains everything, 1 freezes the stem, 2 also res2, and so on

    def __post_init__(self) -> None:
        built_stages(STAGES, self.out_features)  # raises where they are none
        if not self.is_bottleneck and (self.groups, self.width_per_group, self.res5_dilation) != (1, None, 1):
            raise ValueError(f"a ResNet-{self.depth} has basic blocks, which take no groups and no dilation")
        if self.is_bottleneck and self.width_per_group is None and self.width % max(self.groups, 1):
            raise ValueError(f"width {self.width} must be a multiple of groups {self.groups}")
        self.norm.check_channels("stem_width", self.stem_width or self.width)
        for name in self.stages:
            self.norm.check_channels(f"the width of {name}", self.stage_channels(name))
            if self.is_bottleneck:
                self.norm.check_channels(f"the width of bottlenecks in {name}", self.bottleneck_channels(name))

    @property
    def is_bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are built."""
        return built_stages(STAGES, self.out_features)

    @property
    def features(self) -> dict[str, Feature]:
        return {name: Feature(self.stage_channels(name), self.stage_stride(name)) for name in self.out_features}

    def stage_stride(self, name: str) -> int:
        return 16 if name == "res5" and self.res5_dilation == 2 else 4 * 2 ** STAGES.index(name)

    def stage_channels(self, name: str) -> int:
        return self.width * 2 ** STAGES.index(name) * (4 if self.is_bottleneck else 1)

    def bottleneck_channels(self, name: str) -> int:
        width = self.width if self.width_per_group is None else self.groups * self.width_per_group
        return width * 2 ** STAGES.index(name)

    def build(self, rngs: nnx.Rngs) -> "ResNet":
        return ResNet(self, rngs=rngs)

    def build_res5(self, rngs: nnx.Rngs) -> "Stage":
        """The last stage by itself, as the head that C4 applies to RoIs. It is never frozen."""
        return Stage(self, "res5", self.stage_channels("res4"), rngs=rngs)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormConfig, rngs: nnx.Rngs) -> ConvNorm | None:
    """The projection of a block that changes the shape of its input; None where the input itself is added."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNorm(in_channels, out_channels, Kernel(1, stride=stride), norm=norm, rngs=rngs)


class BasicBlock(nnx.Module):
    recomputed = False

    def __init__(self, config: ResNetConfig, stage: str, in_channels: int, stride: int, *, rngs: nnx.Rngs):
        norm, out_channels = config.norm, config.stage_channels(stage)
        self.conv1 = ConvNorm(in_channels, out_channels, Kernel(3, stride=stride), norm=norm, rngs=rngs)
        self.conv2 = ConvNorm(out_channels, out_channels, Kernel(3), norm=norm, rngs=rngs)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))) + shortcut)


class BottleneckBlock(nnx.Module):
    recomputed = False

    def __init__(self, config: ResNetConfig, stage: str, in_channels: int, stride: int, *, rngs: nnx.Rngs):
        norm, out_channels, middle = config.norm, config.stage_channels(stage), config.bottleneck_channels(stage)
        strides = (stride, 1) if config.stride_in_1x1 else (1, stride)
        dilation = config.res5_dilation if stage == "res5" else 1
        self.conv1 = ConvNorm(in_channels, middle, Kernel(1, stride=strides[0]), norm=norm, rngs=rngs)
        kernel = Kernel(3, strides[1], dilation, config.groups)
        self.conv2 = ConvNorm(middle, middle, kernel, norm=norm, rngs=rngs)
        self.conv3 = ConvNorm(middle, out_channels, Kernel(1), norm=norm, rngs=rngs)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = jax.nn.relu(self.conv1(x))
        x = jax.nn.relu(self.conv2(x))
        return jax.nn.relu(self.conv3(x) + shortcut)


class Stage(nnx.Module):
    """Blocks `block1`, `block2`, ...; the first one strides, except in res2 (the pool has) and in a dilated res5."""

    def __init__(self, config: ResNetConfig, name: str, in_channels: int, *, rngs: nnx.Rngs):
        block_type = BottleneckBlock if config.is_bottleneck else BasicBlock
        self.blocks = BLOCKS[config.depth][STAGES.index(name)]
        strides = name != "res2" and not (name == "res5" and config.res5_dilation == 2)
        for i in range(self.blocks):
            block = block_type(config, name, in_channels, 2 if strides and i == 0 else 1, rngs=rngs)
            setattr(self, f"block{i + 1}", block)
            in_channels = config.stage_channels(name)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        for i in range(self.blocks):
            x = call(getattr(self, f"block{i + 1}"), x)
        return x


class ResNet(nnx.Module):
    """Returns the features named in `ResNetConfig.out_features`. Any size of image will do."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.stages, self.out_features = config.stages, config.out_features
        in_channels = config.stem_width or config.width
        self.stem = ConvNorm(3, in_channels, Kernel(7, stride=2), norm=config.norm, rngs=rngs)
        for name in config.stages:
            setattr(self, name, Stage(config, name, in_channels, rngs=rngs))
            in_channels = config.stage_channels(name)
        for name in ("stem", *config.stages)[: config.freeze_at]:
            freeze(getattr(self, name))

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _ _ _"]]:
        with jax.named_scope("stem"):
            x = max_pool(jax.nn.relu(self.stem(images)))
        features = {}
        for name in self.stages:
            with jax.named_scope(name):
                x = features[name] = getattr(self, name)(x)
        return {name: features[name] for name in self.out_features}
