"""Resizing inside a program, as `data.transforms` does outside: the same sizes and the same pixels.

Shape letters: `B` images, `H W` sides of the input, `h w` sides of the canvas.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

_HALF = 2**11  # Pillow's coefficients have 22 bits; two halves keep every sum an exact float32


@dataclass(frozen=True)
class Preprocessing:
    """How an image reaches the model: its sides, rounded as `convention` says, on a canvas (height, width)."""

    short_side: int
    max_side: int
    canvas: tuple[int, int]
    convention: Literal["detectron2", "torchvision"] = "detectron2"


def preprocess(
    settings: Preprocessing, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]
) -> tuple[Float[Array, "B h w 3"], Int[Array, "B 2"]]:
    """The resized images, zeros outside them, and their (height, width); `sizes` are those of the images in the input.

    An image that the canvas does not hold is made smaller until it does.
    """
    resized = resized_sizes(settings, sizes)
    along = _pillow if settings.convention == "detectron2" else _linear
    pixels = images.astype(jnp.float32)
    # Each library's order: Pillow resizes rows first and rounds in between, torchvision columns.
    axes = (1, 0) if settings.convention == "detectron2" else (0, 1)
    for axis in axes:
        of_image = jax.vmap(lambda image, n, m, axis=axis: along(image, axis, settings.canvas[axis], n, m))
        pixels = of_image(pixels, sizes[:, axis], resized[:, axis])
    return pixels, resized


def resized_sizes(settings: Preprocessing, sizes: Int[Array, "B 2"]) -> Int[Array, "B 2"]:
    """`data.transforms.resized_size` of each image, made smaller where the canvas does not hold it."""
    # In float64 as there: float32 rounds some sides to other integers.
    with jax.enable_x64(True):
        short_side, max_side = jnp.float64(settings.short_side), jnp.float64(settings.max_side)
        canvas = jnp.array(settings.canvas, jnp.float64)
        sides = sizes.astype(jnp.float64)
        low, high = jnp.min(sides, axis=1, keepdims=True), jnp.max(sides, axis=1, keepdims=True)
        if settings.convention == "torchvision":
            resized = jnp.floor(sides * jnp.minimum(short_side / low, max_side / high))
        else:
            scaled = jnp.where(sides == low, short_side, short_side / low * sides)
            longest = jnp.max(scaled, axis=1, keepdims=True)
            shrunk = jnp.where(longest > max_side, scaled * (max_side / longest), scaled)
            resized = jnp.floor(shrunk + 0.5)
        resized = jnp.maximum(resized, 1)
        fitted = jnp.floor(sides * jnp.min(canvas / sides, axis=1, keepdims=True) + 0.5)
        resized = jnp.where(jnp.any(resized > canvas, axis=1, keepdims=True), fitted, resized)
        return jnp.clip(resized, 1, canvas).astype(jnp.int32)


def _pillow(
    image: Float[Array, "..."], axis: int, length: int, old: Int[Array, ""], new: Int[Array, ""]
) -> Float[Array, "..."]:
    """The first `old` cells of an axis resized to `new` of `length`: Pillow's antialiased bilinear filter, to the bit.

    A coefficient is an integer ratio, rounded to 22 bits by two divisions that fit int32.
    """
    cell, pixel = jnp.arange(image.shape[axis]), jnp.arange(length)[:, None]
    widest = 2 * jnp.maximum(old, new)
    weight = jnp.maximum(widest - jnp.abs((2 * cell + 1) * new - (2 * pixel + 1) * old), 0)
    weight = jnp.where((cell < old) & (pixel < new), weight, 0)
    total = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True, dtype=jnp.int32), 1)
    high = _divide(weight * _HALF, total)
    low = _divide((weight * _HALF - high * total) * _HALF + _divide(total, 2), total)
    products = _apply(high, image, axis), _apply(low, image, axis)
    high_sum, low_sum = (product.astype(jnp.int32) for product in products)
    rounded = _divide(high_sum * _HALF + low_sum + _HALF**2 // 2, _HALF**2)
    return jnp.minimum(rounded, 255).astype(jnp.float32)


def _divide(numerator: Int[Array, "..."], denominator: Int[Array, "..."] | int) -> Int[Array, "..."]:
    """The quotient of what is not negative, where `//` would handle signs too."""
    return jax.lax.div(numerator, jnp.broadcast_to(jnp.int32(denominator), numerator.shape))


def _linear(
    image: Float[Array, "..."], axis: int, length: int, old: Int[Array, ""], new: Int[Array, ""]
) -> Float[Array, "..."]:
    """The first `old` cells of an axis resized to `new` of `length` by linear interpolation between two cells."""
    scale = old.astype(jnp.float32) / new.astype(jnp.float32)
    with jax.enable_x64(True):  # torch's positions: in float64, rounded once
        centers = jnp.arange(length).astype(jnp.float64) + 0.5
        at = jnp.maximum(centers * scale.astype(jnp.float64) - 0.5, 0.0).astype(jnp.float32)
    low = jnp.minimum(jnp.floor(at).astype(jnp.int32), old - 1)
    high = jnp.minimum(low + 1, old - 1)
    fraction = (at - low.astype(jnp.float32))[:, None]
    cell = jnp.arange(image.shape[axis])
    weight = jnp.where(cell == low[:, None], 1 - fraction, 0) + jnp.where(cell == high[:, None], fraction, 0)
    return _apply(jnp.where((jnp.arange(length) < new)[:, None], weight, 0), image, axis)


def _apply(weights: Array, image: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    product = "ph,hwc->pwc" if axis == 0 else "qw,hwc->hqc"
    # Exact integers, and positions that decide: not the reduced precision that accelerators take by default.
    return jnp.einsum(product, weights.astype(jnp.float32), image, precision="highest")
