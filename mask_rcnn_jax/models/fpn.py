"""Feature pyramid network (Lin et al. 2017, https://arxiv.org/abs/1612.03144).

Features are named `p2` to `p6`, with strides 4 to 64. Shape letters: `B` images, `H W` height and width.
"""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.models.initialisers import xavier_init
from mask_rcnn_jax.models.layers import ConvNorm, NormConfig
from mask_rcnn_jax.models.resnet import STAGES, ResNetConfig
from mask_rcnn_jax.ranges import Channels


@dataclass(frozen=True)
class FPNConfig:
    bottom_up: ResNetConfig = ResNetConfig()
    channels: Channels = 256
    norm: NormConfig = NormConfig(kind="none")

    def __post_init__(self) -> None:
        self.norm.check_channels("channels", self.channels)
        names = self.bottom_up.out_features
        if ",".join(names) not in ",".join(STAGES):
            raise ValueError(
                f"bottom_up.out_features must follow one another, such as {', '.join(STAGES)}, not {names}"
            )

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that are made of stages, from fine to coarse; one more lies above."""
        return tuple(STAGES.index(name) + 2 for name in self.bottom_up.out_features)

    @property
    def out_strides(self) -> dict[str, int]:
        return {f"p{level}": 2**level for level in (*self.levels, self.levels[-1] + 1)}

    @property
    def out_channels(self) -> dict[str, int]:
        return dict.fromkeys(self.out_strides, self.channels)

    def build(self, rngs: nnx.Rngs) -> "FPN":
        return FPN(self, rngs=rngs)


class FPN(nnx.Module):
    """Returns the features `p2` to `p6`; `p6` is `p5` subsampled by 2. Image sides must be multiples of 32.

    Without the stages before or after, the levels are fewer, and sides must be multiples of the last stage's stride.
    """

    def __init__(self, config: FPNConfig, *, rngs: nnx.Rngs):
        self.bottom_up = config.bottom_up.build(rngs)
        self.levels = config.levels
        for level in self.levels:
            channels = config.bottom_up.stage_channels(f"res{level}")
            lateral = ConvNorm(channels, config.channels, 1, norm=config.norm, init=xavier_init, rngs=rngs)
            output = ConvNorm(config.channels, config.channels, 3, norm=config.norm, init=xavier_init, rngs=rngs)
            setattr(self, f"lateral{level}", lateral)
            setattr(self, f"output{level}", output)

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _ _ _"]]:
        stride = 2 ** self.levels[-1]
        if images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(f"images must have sides that are multiples of {stride}, not {images.shape[1:3]}")
        bottom_up = self.bottom_up(images)
        features, coarser = {}, None
        for level in reversed(self.levels):
            with jax.named_scope(f"p{level}"):
                x = getattr(self, f"lateral{level}")(bottom_up[f"res{level}"])
                coarser = x if coarser is None else x + coarser.repeat(2, axis=1).repeat(2, axis=2)
                features[f"p{level}"] = getattr(self, f"output{level}")(coarser)
        last = self.levels[-1]
        return dict(sorted(features.items())) | {f"p{last + 1}": features[f"p{last}"][:, ::2, ::2]}
