"""The cells of all levels of all images, one after the other, so that one gather takes those of any RoI.

Shape letters: `B` images, `R` RoIs of an image, `C` channels, `L` cells of all levels of all images.
"""

from collections.abc import Sequence
from itertools import accumulate

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def all_cells(features: Sequence[Float[Array, "B _ _ C"]]) -> Float[Array, "L C"]:
    """Lay the cells out: those of an image's first level row by row, of its other levels, and of the next image."""
    channels = features[0].shape[-1]
    cells = jnp.concatenate([level.reshape(level.shape[0], -1, channels) for level in features], axis=1)
    return cells.reshape(-1, channels)


def first_cells(features: Sequence[Float[Array, "B _ _ C"]], levels: Int[Array, "B R"]) -> Int[Array, "B R"]:
    """Number the first cell of the map that each RoI lies on, which is level `levels[b, r]` of image b."""
    areas = [level.shape[1] * level.shape[2] for level in features]
    images = jnp.arange(levels.shape[0], dtype=jnp.int32)[:, None]
    return images * sum(areas) + jnp.array([0, *accumulate(areas[:-1])], jnp.int32)[levels]
