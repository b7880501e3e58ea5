"""Sums of sorted rows, in an order that is the same in every run: a scatter is added up in any order on a GPU.

Shape letters: `U` rows, `C` columns.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def running_sums(begins: Bool[Array, "U #C"], values: Float[Array, "U C"]) -> Float[Array, "U C"]:
    """Sum values down each column, anew from wherever `begins` is set; the last row before that has the whole sum."""

    def join(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        (before_begins, before_sum), (after_begins, after_sum) = before, after
        return before_begins | after_begins, jnp.where(after_begins, after_sum, before_sum + after_sum)

    return jax.lax.associative_scan(join, (begins, values))[1]
