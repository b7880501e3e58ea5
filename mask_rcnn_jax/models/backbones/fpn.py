"""Feature pyramid network (Lin et al. 2017, https://arxiv.org/abs/1612.03144).

Features are named `p2` to `p6`, with strides 4 to 64. Shape letters: `B` images, `H W` height and width.
"""

import itertools
import math
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature, PyramidConfig, is_power_of_two
from mask_rcnn_jax.models.backbones.resnet import ResNetConfig
from mask_rcnn_jax.models.checks import check_features, check_network
from mask_rcnn_jax.models.layers import ConvNorm, Kernel
from mask_rcnn_jax.models.layers.initialisers import xavier_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.ranges import Channels


@dataclass(frozen=True)
class FPNConfig(PyramidConfig):
    bottom_up: BackboneConfig = ResNetConfig()
    channels: Channels = 256
    norm: NormConfig = NormConfig(kind="none")

    def __post_init__(self) -> None:
        self.norm.check_channels("channels", self.channels)
        strides = list(self.bottom_up.out_strides.values())
        doubled = all(after == 2 * before for before, after in itertools.pairwise(strides))
        if not strides or not doubled or not is_power_of_two(strides[0]):
            made = ", ".join(f"{name} {stride}" for name, stride in self.bottom_up.out_strides.items()) or "none"
            raise ValueError(
                "strides of bottom_up must be powers of 2, and each feature must have twice the stride of the one"
                f" before, not {made}"
            )

    @property
    def levels(self) -> dict[int, str]:
        """Return the features of `bottom_up` by level, from fine to coarse; one more level lies above."""
        return {stride.bit_length() - 1: name for name, stride in self.bottom_up.out_strides.items()}

    @property
    def features(self) -> dict[str, Feature]:
        levels = (*self.levels, max(self.levels) + 1)
        return {f"p{level}": Feature(self.channels, 2**level) for level in levels}

    @property
    def size_divisor(self) -> int:
        return math.lcm(2 ** max(self.levels), self.bottom_up.size_divisor)

    def build(self, rngs: nnx.Rngs) -> "FPN":
        return FPN(self, rngs=rngs)


class FPN(nnx.Module):
    """Returns the features `p2` to `p6`; `p6` is `p5` subsampled by 2.

    Of a backbone that makes fewer features, the levels are fewer; sides must be multiples of the last one's stride.
    """

    def __init__(self, config: FPNConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bottom_up = check_network(config.bottom_up, config.bottom_up.build(rngs))
        self.levels, self.size_divisor = tuple(config.levels.items()), config.size_divisor
        for level, name in self.levels:
            channels = config.bottom_up.features[name].channels
            lateral = ConvNorm(channels, config.channels, Kernel(1), norm=config.norm, init=xavier_init, rngs=rngs)
            output = ConvNorm(
                config.channels, config.channels, Kernel(3), norm=config.norm, init=xavier_init, rngs=rngs
            )
            setattr(self, f"lateral{level}", lateral)
            setattr(self, f"output{level}", output)

    def __call__(
        self, images: Float[Array, "B H W 3"], keys: Key[Array, " B"] | None = None
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        divisor = self.size_divisor
        if images.shape[1] % divisor or images.shape[2] % divisor:
            raise ValueError(f"images must have sides that are multiples of {divisor}, not {images.shape[1:3]}")
        made = self.config.bottom_up.apply(self.bottom_up, images, keys)
        bottom_up = check_features(self.config.bottom_up, made, (images.shape[1], images.shape[2]))
        features, coarser = {}, None
        for level, name in reversed(self.levels):
            with jax.named_scope(f"p{level}"):
                x = getattr(self, f"lateral{level}")(bottom_up[name])
                coarser = x if coarser is None else x + coarser.repeat(2, axis=1).repeat(2, axis=2)
                features[f"p{level}"] = getattr(self, f"output{level}")(coarser)
        last, _ = self.levels[-1]
        return dict(sorted(features.items())) | {f"p{last + 1}": features[f"p{last}"][:, ::2, ::2]}
