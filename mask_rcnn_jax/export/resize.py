"""Resizing inside a program, as `data.transforms` does outside: the same sizes and the same pixels.

Shape letters: `B` images, `H W` sides of the input, `h w` sides of the canvas.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from mask_rcnn_jax.data.augment.transforms import columns_come_first
from mask_rcnn_jax.ops.precision import EXACT

_ONE = 2**22  # Pillow's coefficients are multiples of 1 / 2**22
# They are applied in two parts, the higher 16 bits and the lower 6, whose sums over an axis are integers below 2**24
# and so exact in float32: the higher for any image, the lower for as many as 1044 cells a pixel.
_LOW = 2**6
_MOST_CELLS = 1044


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image: its sides, rounded as `convention` says, on a canvas (height, width)."""

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

    def passes(*axes: int) -> Float[Array, "B h w 3"]:
        along = _pillow if settings.convention == "detectron2" else _linear
        pixels = images.astype(jnp.float32)
        for axis in axes:
            of_image = jax.vmap(lambda image, n, m, axis=axis: along(image, axis, settings.canvas[axis], n, m))
            pixels = of_image(pixels, sizes[:, axis], resized[:, axis])
        return pixels

    if settings.convention == "torchvision":
        return passes(0, 1), resized
    # Pillow rounds in between, and its version decides what comes first.
    pixels, columns_first = passes(1, 0), columns_come_first(*sizes.T, *resized.T)
    if columns_first is not False and _may_shrink(settings, images.shape[1:3]):
        pixels = jnp.where(columns_first[:, None, None, None], passes(0, 1), pixels)
    return pixels, resized


def _may_shrink(settings: Preprocessing, input_size: tuple[int, ...]) -> bool:
    """Return False where no image of the input is made smaller."""
    (height, width), (canvas_height, canvas_width) = input_size, settings.canvas
    fits = height <= canvas_height and width <= canvas_width and max(height, width) <= settings.max_side
    return not (fits and min(height, width) <= settings.short_side)


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


def largest_exact_side(settings: Preprocessing) -> int | None:
    """Return the longest side in pixels whose image is resized exactly; None without a limit.

    A pixel sees the cells of twice the reduction. Rounding makes that of a short axis half as large again as asked for.
    """
    if settings.convention == "torchvision":  # two cells a pixel, always
        return None
    return (_MOST_CELLS - 2) * min(settings.short_side, settings.max_side, *settings.canvas) // 3


def _pillow(
    image: Float[Array, "..."], axis: int, length: int, old: Int[Array, ""], new: Int[Array, ""]
) -> Float[Array, "..."]:
    """The first `old` cells of an axis resized to `new` of `length`: Pillow's antialiased bilinear filter, to the bit.

    A coefficient is a ratio of two integers, rounded to 22 bits. In float64, which holds both and decides the rounding:
    products of two sides of a large image are beyond int32.
    """
    with jax.enable_x64(True):
        cells, pixels = old.astype(jnp.float64), new.astype(jnp.float64)
        cell = jnp.arange(image.shape[axis], dtype=jnp.float64)
        pixel = jnp.arange(length, dtype=jnp.float64)[:, None]
        distance = jnp.abs((2 * cell + 1) * pixels - (2 * pixel + 1) * cells)
        weight = jnp.maximum(2 * jnp.maximum(cells, pixels) - distance, 0.0)
        weight = jnp.where((cell < cells) & (pixel < pixels), weight, 0.0)
        total = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
        coefficient = jnp.floor(weight * _ONE / total + 0.5)
        high = jnp.floor(coefficient / _LOW)
        low = coefficient - high * _LOW
    products = _apply(high, image, axis), _apply(low, image, axis)
    high_sum, low_sum = (product.astype(jnp.int32) for product in products)
    rounded = jax.lax.div(high_sum * _LOW + low_sum + _ONE // 2, jnp.full_like(high_sum, _ONE))
    return jnp.minimum(rounded, 255).astype(jnp.float32)


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
    return jnp.einsum(product, weights.astype(jnp.float32), image, precision=EXACT)
