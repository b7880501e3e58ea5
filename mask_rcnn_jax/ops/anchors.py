"""Anchors of one feature map.

Shape letters: `A` anchors a cell, `h w` sides of the feature map.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cell_anchors(
    sizes: Sequence[int | float], ratios: Sequence[int | float], rounded: bool = False
) -> Float[np.ndarray, "A 4"]:
    """Anchors centred on (0, 0), in pixels: sizes in the outer loop, ratios in the inner one.

    A size is the square root of the area and a ratio is height / width. `rounded` rounds the corners half to even, as
    torchvision does; Detectron2 does not.
    """
    anchors = []
    for size in sizes:
        for ratio in ratios:
            width = np.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    array = np.asarray(anchors, np.float64).reshape(-1, 4)
    return (np.round(array) if rounded else array).astype(np.float32)


def grid_anchors(
    grid: tuple[int, int], stride: tuple[int, int], cell: Float[Array | np.ndarray, "A 4"]
) -> Float[Array, "anchors 4"]:
    """The cell's anchors moved to every cell of a `grid` (h, w) with `stride` (y, x) in pixels.

    Rows first, then columns, then anchors, `h * w * A` in all: the order in which an `[h, w, A]` head output is
    flattened. The first cell is centred on the corner of the image (offset 0).
    """
    ys = jnp.arange(grid[0], dtype=jnp.float32) * stride[0]
    xs = jnp.arange(grid[1], dtype=jnp.float32) * stride[1]
    y, x = jnp.meshgrid(ys, xs, indexing="ij")
    shifts = jnp.stack([x, y, x, y], axis=-1)
    return (shifts[:, :, None, :] + jnp.asarray(cell)).reshape(-1, 4)
