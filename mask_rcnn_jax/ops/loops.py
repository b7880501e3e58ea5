"""Helpers that the loops of RoIAlign on CPU share."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

Index = int | Int[Array, ""]


def as_index(index: Index) -> Int[Array, ""]:
    """An index of the arrays' own type: JAX takes Python's integers for int64 where float64 is enabled."""
    return jnp.asarray(index, jnp.int32)


# Indices here are never negative. To count negative ones from the end, as NumPy does, would take three operations each.


def part(array: Shaped[Array, "..."], corner: Sequence[Index], sizes: Sequence[int]) -> Shaped[Array, "..."]:
    """The part of `array` of these sizes that begins at `corner`."""
    return lax.dynamic_slice(array, [as_index(index) for index in corner], sizes, allow_negative_indices=False)


def row(array: Shaped[Array, "N *shape"], index: Index) -> Shaped[Array, "*shape"]:
    """`array[index]`."""
    zeros = [0] * (array.ndim - 1)
    return part(array, (index, *zeros), (1, *array.shape[1:])).reshape(array.shape[1:])


def with_part(array: Shaped[Array, "..."], update: Shaped[Array, "..."], corner: Sequence[Index]) -> Array:
    """`array` with `update` in the place of its part that begins at `corner`."""
    start = [as_index(index) for index in corner]
    return lax.dynamic_update_slice(array, update, start, allow_negative_indices=False)


def zero_of(*operands: Array) -> Float[Array, ""]:
    """Zero of the operands' widest type that varies over the mesh as they do: a loop's first carry must."""
    nothing = [jnp.logical_and(operand.reshape(-1)[0] != 0, False) for operand in operands]
    return jnp.any(jnp.stack(nothing)).astype(jnp.result_type(*operands))
