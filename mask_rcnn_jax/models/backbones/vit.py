"""The plain vision transformer of ViTDet (Li et al. 2022, https://arxiv.org/abs/2203.16527), as Detectron2 has it.

Its one feature is named `last`; most blocks attend within windows, a few to the whole image. Shape letters: `B` images
or windows, `H W` height and width, `Y X` rows and columns of tokens, `C` channels, `h` heads, `c` channels of a head.
"""

import functools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature
from mask_rcnn_jax.models.layers import call
from mask_rcnn_jax.models.layers.attention import (
    absolute_positions,
    attend,
    join_windows,
    relative_positions,
    split_windows,
)
from mask_rcnn_jax.models.layers.drop_path import drop_path, rates_of_blocks
from mask_rcnn_jax.models.layers.initialisers import normal_init, torch_init
from mask_rcnn_jax.models.layers.perceptron import Perceptron
from mask_rcnn_jax.ranges import BelowOne, Channels, NotNegative, Positive

FEATURE = "last"
_init = normal_init(0.02)
_EPSILON = 1e-6
_norm = functools.partial(nnx.LayerNorm, epsilon=_EPSILON, use_fast_variance=False)
_linear = functools.partial(nnx.Linear, kernel_init=_init)


@dataclass(frozen=True)
class ViTConfig(BackboneConfig):
    """ViT-B. Of ViT-L: `channels=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23), drop_path=0.4`."""

    channels: Channels = 768
    depth: Positive = 12
    heads: Positive = 12
    patch: Positive = 16  # pixels a side that become a token: a power of 2
    mlp_ratio: Positive = 4  # channels inside of a perceptron over those outside
    window: Positive = 14  # side, in tokens; a map is padded with zeros to whole windows
    global_blocks: tuple[NotNegative, ...] = (2, 5, 8, 11)  # these attend to the whole map; the first block is 0
    relative_positions: bool = True
    # The square images that the tables of relative positions are made for, and those of the pretraining that those of
    # absolute ones are. For images of other sizes they are interpolated.
    image_size: Positive = 1024
    pretrained_size: Positive = 224
    # The share of images for which a branch of the last block is left out in training; from 0 in the first block.
    drop_path: BelowOne = 0.1

    def __post_init__(self) -> None:
        if self.channels % max(self.heads, 1):
            raise ValueError(f"channels {self.channels} must be a multiple of heads {self.heads}")
        if beyond := [block for block in self.global_blocks if block >= self.depth]:
            raise ValueError(f"global_blocks are from 0 to depth - 1, {self.depth - 1}, not {beyond[0]}")
        for name in ("image_size", "pretrained_size"):
            if (size := getattr(self, name)) % self.patch:
                raise ValueError(f"{name} {size} must be a multiple of patch {self.patch}")

    @property
    def features(self) -> dict[str, Feature]:
        return {FEATURE: Feature(self.channels, self.patch)}

    @property
    def size_divisor(self) -> int:
        return self.patch

    @property
    def draws(self) -> bool:
        return self.drop_path > 0

    @property
    def layers(self) -> int:
        return self.depth + 1

    def layer_of(self, path: tuple[str, ...]) -> int:
        block = re.fullmatch(r"block(\d+)", path[0])
        return int(block[1]) if block else 0

    def attended(self, block: int) -> int:
        """Return the side, in tokens, of what the block attends to: a window, or the map of an image of
        `image_size`.
        """
        return self.image_size // self.patch if block in self.global_blocks else self.window

    def build(self, rngs: nnx.Rngs) -> "ViT":
        return ViT(self, rngs=rngs)


class Attention(nnx.Module):
    """Attention between the tokens of a map, or of each of its windows, by their content and relative positions."""

    def __init__(self, config: ViTConfig, block: int, *, rngs: nnx.Rngs):
        channels = config.channels
        self.heads, self.window = config.heads, None if block in config.global_blocks else config.window
        self.norm = _norm(channels, rngs=rngs)
        self.qkv = _linear(channels, 3 * channels, rngs=rngs)
        self.out = _linear(channels, channels, rngs=rngs)
        table = (2 * config.attended(block) - 1, channels // config.heads)
        self.relative_rows = nnx.Param(jnp.zeros(table)) if config.relative_positions else None
        self.relative_columns = nnx.Param(jnp.zeros(table)) if config.relative_positions else None

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
        size = x.shape[1], x.shape[2]
        x = self.norm(x)
        if self.window is None:
            return self._attend(x)
        return join_windows(self._attend(split_windows(x, self.window)), size)

    def _attend(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
        # One product over all three: the first third of the outputs are queries, and so on; heads come within.
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.heads, -1)
        q, k, v = (qkv[:, :, :, part] for part in range(3))  # [B, Y, X, h, c]
        rows, columns = (
            None if table is None else relative_positions(table[...], length).astype(x.dtype)
            for table, length in zip((self.relative_rows, self.relative_columns), x.shape[1:3], strict=True)
        )
        return self.out(attend(q, k, v, rows, columns).reshape(x.shape))


class Block(nnx.Module):
    """Attention and a perceptron, each added to what comes in, and each left out of images on its own."""

    recomputed = False

    def __init__(self, config: ViTConfig, number: int, rate: float, *, rngs: nnx.Rngs):
        self.number, self.rate = number, rate  # of the block, from 0, and at which its branches are left out
        self.attention = Attention(config, number, rngs=rngs)
        self.mlp = Perceptron(config.channels, config.mlp_ratio * config.channels, _EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "B Y X C"], keys: Key[Array, " B"] | None) -> Float[Array, "B Y X C"]:
        x = x + drop_path(self.attention(x), self.rate, keys, 2 * self.number)
        return x + drop_path(self.mlp(x), self.rate, keys, 2 * self.number + 1)


class Patches(nnx.Module):
    """A token of each patch: one product, as patches do not overlap."""

    def __init__(self, patch: int, channels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(torch_init(rngs.params(), (patch, patch, 3, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X C"]:
        batch, height, width, _ = images.shape
        side = self.kernel.shape[0]
        patches = images.reshape(batch, height // side, side, width // side, side, 3)
        tokens = jnp.einsum("bypxqi,pqic->byxc", patches, self.kernel[...].astype(images.dtype))
        return tokens + self.bias[...].astype(images.dtype)


class ViT(nnx.Module):
    """Returns the tokens after the last block, without a norm, as the feature `last`."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.depth, side = config.depth, config.pretrained_size // config.patch
        self.patches = Patches(config.patch, config.channels, rngs=rngs)
        # That of the class token, which detectors do without, is not among them.
        self.positions = nnx.Param(_init(rngs.params(), (side, side, config.channels)))
        for i, rate in enumerate(rates_of_blocks(config.drop_path, config.depth)):
            setattr(self, f"block{i + 1}", Block(config, i, rate, rngs=rngs))

    def tokens(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X C"]:
        """Compute what the first block is given: patches and their positions."""
        x = self.patches(images)
        return x + absolute_positions(self.positions[...], (x.shape[1], x.shape[2])).astype(x.dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"], keys: Key[Array, " B"] | None = None
    ) -> dict[str, Float[Array, "B Y X C"]]:
        with jax.named_scope("patches"):
            x = self.tokens(images)
        for i in range(self.depth):
            with jax.named_scope(f"block{i + 1}"):
                x = call(getattr(self, f"block{i + 1}"), x, keys)
        return {FEATURE: x}
