"""Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382): blocks that are left out in training.

Shape letters: `B` images.
"""

import jax
from jaxtyping import Array, Float, Key


def drop_path(
    branch: Float[Array, "B *rest"], rate: float, keys: Key[Array, " B"] | None, number: int
) -> Float[Array, "B *rest"]:
    """Return what a block adds to its input: zeros for images drawn with the probability `rate`, the others scaled up
    so that the mean stays.

    Without keys nothing is left out. `number` tells apart the blocks that share the keys.
    """
    if keys is None or rate == 0:
        return branch
    kept = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate))(keys)
    return branch * (kept.astype(branch.dtype) / (1 - rate)).reshape(-1, *[1] * (branch.ndim - 1))


def rates_of_blocks(last: float, blocks: int) -> list[float]:
    """Return the rate of each block, from 0 for the first to `last`."""
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]
