"""The precision of coordinates, losses and sums."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def at_least_float32(x: Shaped[Array, "*S"]) -> Float[Array, "*S"]:
    """`x` in float32, or in float64 if that is its type: coordinates and losses are never narrower."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
