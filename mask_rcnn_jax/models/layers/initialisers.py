"""Initialisers of layers, those of Detectron2: Kaiming (He et al. 2015) and normal.

Numbers are drawn by a few programs for powers of four and scaled by a small one a shape: drawing each shape by itself
compiles some thirty long programs for a network. jax's random numbers do not depend on how many are drawn (unless
jax_threefry_partitionable is turned off), and the results are bit for bit those of `jax.nn.initializers`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key

_ROOT_2, _THREE = np.float32(math.sqrt(2)), np.float32(3)


def normal_init(deviation: float) -> nnx.Initializer:
    """Return an initialiser that draws from a normal distribution around zero."""

    def init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
        return _drawn(key, tuple(shape), np.float32(deviation) * _ROOT_2, "normal").astype(dtype)

    return init


def msra_init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Draw a kernel of shape [..., I, O] from a normal distribution of variance 2 / (O x the kernel's cells)."""
    fan_out = math.prod(shape) // shape[-2]
    return _drawn(key, tuple(shape), _ROOT_2 * np.sqrt(np.float32(2 / fan_out)), "normal").astype(dtype)


def xavier_init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Draw a kernel of shape [..., I, O] uniformly, with variance 1 / (I x the kernel's cells): Kaiming with a = 1."""
    fan_in = math.prod(shape) // shape[-1]
    return _drawn(key, tuple(shape), np.sqrt(_THREE * np.float32(1 / fan_in)), "uniform").astype(dtype)


def torch_init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Draw a kernel of shape [..., I, O] uniformly, with variance 1 / (3 I x the kernel's cells): PyTorch's default."""
    fan_in = math.prod(shape) // shape[-1]
    return _drawn(key, tuple(shape), np.sqrt(_THREE * np.float32(1 / 3 / fan_in)), "uniform").astype(dtype)


def _drawn(
    key: Key[Array, ""], shape: tuple[int, ...], scale: np.float32, kind: Literal["normal", "uniform"]
) -> Float32[Array, "..."]:
    bits = (math.prod(shape) - 1).bit_length()
    return _scaled(_draw(key, 1 << bits + bits % 2, kind), scale, shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: Key[Array, ""], size: int, kind: Literal["normal", "uniform"]) -> Float32[Array, " N"]:
    """Numbers uniform between -1 and 1, or normal ones over the root of two."""
    if kind == "uniform":
        return jax.random.uniform(key, (size,), jnp.float32, -1.0)
    above = np.nextafter(np.float32(-1), np.float32(0))
    return jax.lax.erf_inv(jax.random.uniform(key, (size,), jnp.float32, above))


@functools.partial(jax.jit, static_argnums=2)
def _scaled(drawn: Float32[Array, " N"], scale: Float32[Array, ""], shape: tuple[int, ...]) -> Float32[Array, "..."]:
    return drawn[: math.prod(shape)].reshape(shape) * scale
