"""Draws the rows that a loss is computed on, and finds the best ones.

Shape letters: `N` anchors or proposals, `S` drawn rows, `D` best ones.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops.gpu import top_k as tournament


class Samples(NamedTuple):
    """Foreground first, background directly after the last foreground, padding (index 0) at the end.

    Foreground lies within the first `int(num * foreground_fraction)` positions, so that a head for foreground alone
    takes a static slice.
    """

    indices: Int[Array, "*B S"]
    foreground: Bool[Array, "*B S"]
    valid: Bool[Array, "*B S"]


def sample(
    labels: Int[Array, " N"],
    priority: Float[Array, " N"],
    num: int,
    foreground_fraction: float,
) -> Samples:
    """Draws `num` rows: at most `int(num * foreground_fraction)` foreground, the rest background.

    Labels are 1 foreground, 0 background, -1 never drawn. Within a kind the highest `priority` is drawn first and ties
    go to the lowest index, so that independent uniform priorities draw uniformly. Missing foreground is made up for by
    background, not the reverse. Rows of label -1 change nothing.
    """
    max_foreground = int(num * foreground_fraction)
    foreground_rows, num_foreground = _draw(labels == 1, priority, max_foreground)
    background_rows, num_background = _draw(labels == 0, priority, num)
    position = jnp.arange(num)
    foreground = position < num_foreground
    valid = position < jnp.minimum(num_foreground + num_background, num)
    # [foreground slots | background slots]: background slots start where the drawn foreground ends.
    slot = jnp.where(foreground, position, max_foreground + position - num_foreground)
    rows = jnp.concatenate([foreground_rows, background_rows])
    indices = jnp.where(valid, rows[slot], 0)
    return Samples(indices=indices, foreground=foreground, valid=valid)


def _draw(
    eligible: Bool[Array, " N"], priority: Float[Array, " N"], num: int
) -> tuple[Int[Array, " S"], Int[Array, ""]]:
    """The `num` eligible rows of highest priority, filled up with index 0, and how many there are."""
    top = min(num, eligible.shape[0])
    _, rows = top_k(jnp.where(eligible, priority, -jnp.inf), top)
    count = jnp.minimum(jnp.sum(eligible, dtype=jnp.int32), top)
    return jnp.pad(rows, (0, num - top)), count


def top_k(values: Float[Array, " N"], num: int) -> tuple[Float[Array, " D"], Int[Array, " D"]]:
    """Return the `num` highest values and their rows, of equal ones the lowest row first (`jax.lax.top_k`)."""

    def plain(values: Array) -> tuple[Array, Array]:
        highest, rows = jax.lax.top_k(values, num)
        return highest, rows

    chunks = partial(tournament.top_k, num=num)
    return jax.lax.platform_dependent(values, cuda=chunks, rocm=chunks, default=plain)
