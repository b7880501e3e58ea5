"""What the loops of RoIAlign on CPU share."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def as_index(index: int | Int[Array, ""]) -> Int[Array, ""]:
    """An index of the arrays' own type: JAX takes Python's integers for int64 where float64 is enabled."""
    return jnp.asarray(index, jnp.int32)


def zero_of(*operands: Array) -> Float[Array, ""]:
    """Zero of the operands' widest type that varies over the mesh as they do: a loop's first carry must."""
    nothing = [jnp.logical_and(operand.reshape(-1)[0] != 0, False) for operand in operands]
    return jnp.any(jnp.stack(nothing)).astype(jnp.result_type(*operands))
