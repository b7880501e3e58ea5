"""The highest of many values without a sort of all of them: the form for GPUs.

Up to 2,048 numbers are sorted in one kernel, inside a core; every further doubling takes one more pass over memory
than the one before. Chunks are therefore sorted side by side, the best of each go on, and so forth until one is left.

Shape letters: `N` values, `D` the highest of them.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

_CHUNK = 2048


def top_k(values: Float[Array, " N"], num: int) -> tuple[Float[Array, " D"], Int[Array, " D"]]:
    """Return what `jax.lax.top_k` returns: the highest values and their rows, of equal ones the lowest row first."""
    chunk = max(_CHUNK, 1 << (2 * num - 1).bit_length())  # at least half of each falls away
    keys, rows = _ascending(values), lax.iota(jnp.int32, len(values))
    last = jnp.iinfo(keys.dtype).max, jnp.iinfo(rows.dtype).max
    while len(keys) > chunk:
        padded = [
            jnp.pad(x, (0, -len(x) % chunk), constant_values=end) for x, end in zip((keys, rows), last, strict=True)
        ]
        best = lax.sort([x.reshape(-1, chunk) for x in padded], dimension=1, num_keys=2)
        keys, rows = (x[:, :num].reshape(-1) for x in best)
    _, rows = lax.sort((keys, rows), num_keys=2)
    rows = rows[:num]
    return values[rows], rows


def _ascending(values: Float[Array, " N"]) -> Int[Array, " N"]:
    """Return integers whose order is the reverse of that of `values`: NaN, infinity, ..., 0, -0, ..., -NaN."""
    bits = lax.bitcast_convert_type(values, jnp.dtype(f"int{8 * values.dtype.itemsize}"))
    return ~jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
