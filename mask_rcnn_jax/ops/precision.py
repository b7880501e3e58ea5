"""The precision of coordinates, losses and sums."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

# For products of coordinates, interpolation weights and one-hot rows: by default a GPU rounds their operands to TF32
# and a TPU to bfloat16. Layers take the default.
EXACT = jax.lax.Precision.HIGHEST


def at_least_float32(x: Shaped[Array, "*S"]) -> Float[Array, "*S"]:
    """`x` in float32, or in float64 if that is its type: coordinates and losses are never narrower."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
