"""The simple feature pyramid of ViTDet (Li et al. 2022, https://arxiv.org/abs/2203.16527, section 3): every level is
made of one map, by itself.

Of a map with stride 16 the features are `p2` to `p6`, with strides 4 to 64. Shape letters: `B` images, `H W` height and
width, `Y X` those of a map, `I O` channels in and out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature, PyramidConfig, is_power_of_two
from mask_rcnn_jax.models.backbones.vit import ViTConfig
from mask_rcnn_jax.models.checks import check_features, check_network
from mask_rcnn_jax.models.layers import ConvNorm, Deconv2x2, Kernel, max_pool
from mask_rcnn_jax.models.layers.initialisers import torch_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.ranges import Channels

LAYER_NORM = NormConfig(kind="layer_norm", epsilon=1e-6)


@dataclass(frozen=True)
class SimplePyramidConfig(PyramidConfig):
    bottom_up: BackboneConfig = ViTConfig()
    channels: Channels = 256
    norm: NormConfig = LAYER_NORM

    def __post_init__(self) -> None:
        self.norm.check_channels("channels", self.channels)
        made = self.bottom_up.features
        if len(made) != 1 or self.stride < 4 or not is_power_of_two(self.stride):
            said = ", ".join(f"{name} {feature.stride}" for name, feature in made.items()) or "none"
            raise ValueError(f"bottom_up must make one feature, whose stride is a power of 2 from 4 on, not {said}")
        (width,) = self.bottom_up.out_channels.values()
        if width % 4:
            raise ValueError(f"bottom_up must make a multiple of 4 channels, not {width}")
        self.norm.check_channels("half of the channels of bottom_up,", width // 2)

    @property
    def stride(self) -> int:
        """The stride of the map that the levels are made of."""
        return next(iter(self.bottom_up.out_strides.values()), 0)

    @property
    def features(self) -> dict[str, Feature]:
        strides = [self.stride * times // 4 for times in (1, 2, 4, 8, 16)]
        return {f"p{stride.bit_length() - 1}": Feature(self.channels, stride) for stride in strides}

    @property
    def size_divisor(self) -> int:
        return math.lcm(2 * self.stride, self.bottom_up.size_divisor)

    def build(self, rngs: nnx.Rngs) -> "SimplePyramid":
        return SimplePyramid(self, rngs=rngs)


class Level(nnx.Module):
    """Brings the map to a multiple of its sides, 4, 2, 1 or half, and to the pyramid's channels."""

    def __init__(self, config: SimplePyramidConfig, doublings: int, *, rngs: nnx.Rngs):
        (channels,) = config.bottom_up.out_channels.values()
        self.doublings = doublings
        self.norm = config.norm.build(channels // 2, rngs) if doublings > 1 else None  # between two
        for i in range(doublings):
            setattr(self, f"deconv{i + 1}", Deconv2x2(channels, channels // 2, rngs=rngs, init=_deconv_init))
            channels //= 2
        self.lateral = ConvNorm(channels, config.channels, Kernel(1), norm=config.norm, init=torch_init, rngs=rngs)
        self.output = ConvNorm(
            config.channels, config.channels, Kernel(3), norm=config.norm, init=torch_init, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B _ _ O"]:
        if self.doublings < 0:
            x = max_pool(x, 2)
        for i in range(self.doublings):
            if i:
                x = jax.nn.gelu(x if self.norm is None else self.norm(x), approximate=False)
            x = getattr(self, f"deconv{i + 1}")(x)
        return self.output(self.lateral(x))


class SimplePyramid(nnx.Module):
    """Returns five features, of a map with stride 16 `p2` to `p6`; the last is the one before subsampled by 2."""

    def __init__(self, config: SimplePyramidConfig, *, rngs: nnx.Rngs):
        self.config, self.names = config, tuple(config.features)
        self.bottom_up = check_network(config.bottom_up, config.bottom_up.build(rngs))
        for name, doublings in zip(self.names, (2, 1, 0, -1), strict=False):
            setattr(self, name, Level(config, doublings, rngs=rngs))

    def __call__(
        self, images: Float[Array, "B H W 3"], keys: Key[Array, " B"] | None = None
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        size, divisor = (images.shape[1], images.shape[2]), self.config.size_divisor
        if size[0] % divisor or size[1] % divisor:
            raise ValueError(f"images must have sides that are multiples of {divisor}, not {size}")
        made = self.config.bottom_up.apply(self.bottom_up, images, keys)
        (x,) = check_features(self.config.bottom_up, made, size).values()
        return self.levels(x)

    def levels(self, x: Float[Array, "B Y X I"]) -> dict[str, Float[Array, "B _ _ _"]]:
        """Compute the features of the map."""
        features, (*made, last) = {}, self.names
        for name in made:
            with jax.named_scope(name):
                features[name] = getattr(self, name)(x)
        return features | {last: features[made[-1]][:, ::2, ::2]}


def _deconv_init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "2 2 I O"]:
    """PyTorch's of a transposed convolution, which takes its outputs for inputs."""
    height, width, inputs, outputs = shape
    return torch_init(key, (height, width, outputs, inputs), dtype).swapaxes(2, 3)
