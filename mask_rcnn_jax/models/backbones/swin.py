"""Swin Transformer (Liu et al. 2021, https://arxiv.org/abs/2103.14030), the first version, as torchvision has it.

Features are named `stage1` to `stage4`, with strides 4 to 32. Maps are padded with zeros: images to whole patches, odd
maps before they are merged, and each map to whole windows while its tokens attend to each other. Shape letters: `B`
images, `H W` height and width, `Y X` of a map of whole windows, `C` channels, `I O` channels in and out, `N` windows of
an image, `T` tokens of a window, `P` rows of a table of positions, `h` heads, `D` channels of a head.
"""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature, built_stages
from mask_rcnn_jax.models.layers import Conv, call
from mask_rcnn_jax.models.layers.drop_path import drop_path, rates_of_blocks
from mask_rcnn_jax.models.layers.initialisers import normal_init
from mask_rcnn_jax.models.layers.norms import freeze
from mask_rcnn_jax.models.layers.perceptron import Perceptron
from mask_rcnn_jax.ops.conv import Window
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.ranges import BelowOne, Channels, Positive, Range

STAGES = ("stage1", "stage2", "stage3", "stage4")
_PATCH = 4
_APART = -100.0  # added to the logits of tokens that a shifted window has from other ends of the map
_init = normal_init(0.02)
_EPSILON = 1e-5
_norm = functools.partial(nnx.LayerNorm, epsilon=_EPSILON, use_fast_variance=False)
_linear = functools.partial(nnx.Linear, kernel_init=_init)


@dataclass(frozen=True)
class SwinConfig(BackboneConfig):
    """Swin-T; the others have other `depths`, `channels` and `heads`."""

    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 6, 2)  # S and B: (2, 2, 18, 2)
    channels: Channels = 96  # of stage1; x 2 each stage. B: 128
    heads: tuple[Channels, Channels, Channels, Channels] = (3, 6, 12, 24)  # B: (4, 8, 16, 32)
    window: Annotated[int, Range(2, 64)] = 7  # side, in tokens
    # Along a side that is one window, torchvision's are not shifted, and MMDetection's are: few images are so small.
    shifts_single_windows: bool = False
    feature_norms: bool = True  # a norm of each feature, which detectors have and classifiers have not
    out_features: tuple[str, ...] = STAGES  # nothing beyond the last of them is built
    freeze_at: Annotated[int, Range(0, 5)] = 0  # 0 trains everything, 1 freezes the stem, 2 also stage1, and so on
    # The share of images for which a branch of the last block is left out in training; from 0 in the first block.
    drop_path: BelowOne = 0.2  # of detectors; of classifiers .2 for T, .3 for S, .5 for B

    def __post_init__(self) -> None:
        for name in built_stages(STAGES, self.out_features):  # raises where they are none
            channels, heads = self.stage_channels(name), self.heads[STAGES.index(name)]
            if channels % max(heads, 1):
                raise ValueError(f"the {channels} channels of {name} must be a multiple of its {heads} heads")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are built."""
        return built_stages(STAGES, self.out_features)

    @property
    def features(self) -> dict[str, Feature]:
        names = [name for name in STAGES if name in self.out_features]
        return {name: Feature(self.stage_channels(name), _PATCH * 2 ** STAGES.index(name)) for name in names}

    @property
    def draws(self) -> bool:
        return self.drop_path > 0

    def stage_channels(self, name: str) -> int:
        return self.channels * 2 ** STAGES.index(name)

    def build(self, rngs: nnx.Rngs) -> "Swin":
        return Swin(self, rngs=rngs)


@dataclass(frozen=True)
class Windows:
    """Square windows of a map, that are shifted down and to the right by `shift` tokens."""

    side: int
    shift: int
    shifts_single: bool

    def shifts(self, height: int, width: int) -> tuple[int, int]:
        """Return the shifts along the sides of a map of whole windows."""
        down, right = (self.shift if side > self.side or self.shifts_single else 0 for side in (height, width))
        return down, right

    def split(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B N T C"]:
        """Cut a map of whole windows, row by row; their tokens go row by row, too."""
        batch, height, width, channels = x.shape
        shape = (batch, height // self.side, self.side, width // self.side, self.side, channels)
        return x.reshape(shape).swapaxes(2, 3).reshape(batch, -1, self.side**2, channels)

    def joined(self, windows: Float[Array, "B N T C"], height: int, width: int) -> Float[Array, "B Y X C"]:
        """Undo `split` for a map of this height and width."""
        batch, channels = windows.shape[0], windows.shape[-1]
        shape = (batch, height // self.side, width // self.side, self.side, self.side, channels)
        return windows.reshape(shape).swapaxes(2, 3).reshape(batch, height, width, channels)

    def apart(self, height: int, width: int) -> Bool[np.ndarray, "N T T"]:
        """Tell which tokens of a window are neighbours only because a shifted map goes on at its other end."""
        sides = zip((height, width), self.shifts(height, width), strict=True)
        rows, columns = (
            np.digitize(np.arange(side), [side - self.side, side - shift]) if shift else np.zeros(side, int)
            for side, shift in sides
        )
        regions = 3 * rows[:, None] + columns[None, :]
        tokens = (height // self.side, self.side, width // self.side, self.side)
        of_windows = regions.reshape(tokens).swapaxes(1, 2).reshape(-1, self.side**2)
        return of_windows[:, :, None] != of_windows[:, None, :]

    def of_pairs(self, table: Float[Array, "P h"]) -> Float[Array, "T T h"]:
        """Return the row of a table of positions for each two tokens, by how far the first lies below and to the right.

        As slices, whose gradients are sums of arrays: that of an index is a scatter, which a GPU adds up in any order.
        """
        side, table = self.side, table.reshape(2 * self.side - 1, 2 * self.side - 1, -1)
        rows = jnp.stack([table[y : y + side][::-1] for y in range(side)])
        both = jnp.stack([rows[:, :, x : x + side][:, :, ::-1] for x in range(side)], axis=1)
        return both.reshape(side**2, side**2, -1)


class Attention(nnx.Module):
    """Attention of the tokens of a window to each other, by their content and by how they lie to each other."""

    def __init__(self, channels: int, heads: int, windows: Windows, *, rngs: nnx.Rngs):
        self.heads, self.windows = heads, windows
        self.norm = _norm(channels, rngs=rngs)
        self.qkv = _linear(channels, 3 * channels, rngs=rngs)
        self.out = _linear(channels, channels, rngs=rngs)
        self.positions = nnx.Param(_init(rngs.params(), ((2 * windows.side - 1) ** 2, heads)))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        _, height, width, _ = x.shape
        x = _padded(self.norm(x), self.windows.side)
        down, right = self.windows.shifts(*x.shape[1:3])
        shifted = jnp.roll(x, (-down, -right), axis=(1, 2)) if down or right else x
        attended = self._attend(self.windows.split(shifted), self.windows.apart(*x.shape[1:3]))
        shifted = self.windows.joined(attended, *x.shape[1:3])
        x = jnp.roll(shifted, (down, right), axis=(1, 2)) if down or right else shifted
        return x[:, :height, :width]

    def _attend(self, x: Float[Array, "B N T C"], apart: Bool[np.ndarray, "N T T"]) -> Float[Array, "B N T C"]:
        batch, windows, tokens, channels = x.shape
        # One product over all three: the first third of the outputs are queries, and so on; heads come within.
        qkv = self.qkv(x).reshape(batch, windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = (qkv[:, :, :, part] for part in range(3))  # [B, N, T, h, D]
        logits = jnp.einsum("bnthd,bnshd->bnhts", q * (channels // self.heads) ** -0.5, k)
        positions = self.windows.of_pairs(at_least_float32(self.positions[...]))
        logits = at_least_float32(logits) + positions.transpose(2, 0, 1)
        if apart.any():
            logits = logits + jnp.where(apart, jnp.asarray(_APART, logits.dtype), 0)[:, None]
        weights = jax.nn.softmax(logits).astype(x.dtype)
        return self.out(jnp.einsum("bnhts,bnshd->bnthd", weights, v).reshape(x.shape))


class Block(nnx.Module):
    """Attention and a perceptron, each added to what comes in, and each left out of images on its own."""

    recomputed = False

    def __init__(self, config: SwinConfig, name: str, number: int, rate: float, *, rngs: nnx.Rngs):
        """`number` is the block's in its stage: every second one has shifted windows. It is left out at `rate`."""
        stage, channels = STAGES.index(name), config.stage_channels(name)
        self.number, self.rate = sum(config.depths[:stage]) + number, rate
        windows = Windows(config.window, config.window // 2 * (number % 2), config.shifts_single_windows)
        self.attention = Attention(channels, config.heads[stage], windows, rngs=rngs)
        self.mlp = Perceptron(channels, 4 * channels, _EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], keys: Key[Array, " B"] | None) -> Float[Array, "B H W C"]:
        x = x + drop_path(self.attention(x), self.rate, keys, 2 * self.number)
        return x + drop_path(self.mlp(x), self.rate, keys, 2 * self.number + 1)


class Merge(nnx.Module):
    """Makes one token of 2x2: upper left, lower left, upper right, lower right."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = _norm(4 * channels, rngs=rngs)
        self.reduction = _linear(4 * channels, 2 * channels, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B (H+1)//2 (W+1)//2 O"]:
        x = _padded(x, 2)
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(tokens.reshape(batch, height // 2, width // 2, 4 * channels)))


class Stage(nnx.Module):
    """Merges tokens, except in the first one, and applies `block1`, `block2`, ..."""

    def __init__(self, config: SwinConfig, name: str, *, rngs: nnx.Rngs):
        number = STAGES.index(name)
        self.blocks, before = config.depths[number], sum(config.depths[:number])
        self.merge = Merge(config.stage_channels(name) // 2, rngs=rngs) if number else None
        rates = rates_of_blocks(config.drop_path, sum(config.depths))
        for i in range(self.blocks):
            setattr(self, f"block{i + 1}", Block(config, name, i, rates[before + i], rngs=rngs))

    def __call__(self, x: Float[Array, "B H W I"], keys: Key[Array, " B"] | None) -> Float[Array, "B H2 W2 O"]:
        if self.merge is not None:
            x = self.merge(x)
        for i in range(self.blocks):
            x = call(getattr(self, f"block{i + 1}"), x, keys)
        return x


class Stem(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        window = Window(stride=_PATCH)
        self.conv = Conv((_PATCH, _PATCH, 3, channels), window, 1, use_bias=True, init=_init, rngs=rngs)
        self.norm = _norm(channels, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B (H+3)//4 (W+3)//4 C"]:
        return self.norm(self.conv(_padded(images, _PATCH)))


class Swin(nnx.Module):
    """Returns the features named in `SwinConfig.out_features`. Any size of image will do."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        self.stages, self.out_features = config.stages, tuple(config.features)
        self.stem = Stem(config.channels, rngs=rngs)
        for name in config.stages:
            setattr(self, name, Stage(config, name, rngs=rngs))
        features = config.features if config.feature_norms else {}
        self.norm = nnx.Dict({name: _norm(feature.channels, rngs=rngs) for name, feature in features.items()})
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
                features[name] = self.norm[name](x) if name in self.norm else x
        return {name: features[name] for name in self.out_features}


def _padded(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B Y X C"]:
    """Zeros below and to the right, up to multiples of `side`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % side), (0, -x.shape[2] % side), (0, 0)))
