"""Norms, and what makes a variable untrained.

Shape letters: `B` images or RoIs, `H W` height and width, `O` channels.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.ranges import Channels, Share
from mask_rcnn_jax.sharding import DATA_AXIS


class Frozen(nnx.Variable):
    """A variable that no optimizer sees: frozen weights and frozen statistics."""


def freeze(module: nnx.Module) -> None:
    """Turn every parameter and running statistic below `module` into a `Frozen` one, which training leaves alone."""
    for _, node in nnx.iter_modules(module):
        for name, value in list(vars(node).items()):
            if isinstance(value, nnx.Param | nnx.BatchStat):
                setattr(node, name, Frozen(value.get_value()))


def _scale_and_shift(
    mean: Float[Array, " O"],
    var: Float[Array, " O"],
    scale: Float[Array, " O"],
    bias: Float[Array, " O"],
    epsilon: float,
) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
    """Batch norm as one product and one sum a value, rounded as PyTorch rounds it.

    XLA makes `rsqrt` of one over a root, and on CPU that is wrong by up to four units in the last place, in every
    value of a channel alike; the barrier keeps the root.
    """
    scale = scale * (1 / jax.lax.optimization_barrier(jnp.sqrt(var + epsilon)))
    return scale, bias - mean * scale


class FrozenBatchNorm(nnx.Module):
    """Batch norm with fixed statistics and a fixed affine map (Detectron2's FrozenBatchNorm2d)."""

    def __init__(self, features: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = Frozen(jnp.ones(features))
        self.bias = Frozen(jnp.zeros(features))
        self.mean = Frozen(jnp.zeros(features))
        self.var = Frozen(jnp.ones(features))

    def __call__(self, x: Float[Array, "B H W O"]) -> Float[Array, "B H W O"]:
        mean, var = at_least_float32(self.mean[...]), at_least_float32(self.var[...])
        affine = at_least_float32(self.scale[...]), at_least_float32(self.bias[...])
        scale, shift = _scale_and_shift(mean, var, *affine, self.epsilon)
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch norm (Ioffe and Szegedy 2015), synchronised: in training its statistics are those of all devices' rows.

    Running statistics follow PyTorch: their variance is the unbiased one. Once frozen they normalise in training too,
    as Detectron2 turns the norms of frozen stages into FrozenBatchNorm2d.
    """

    def __init__(self, features: int, epsilon: float, momentum: float):
        self.epsilon, self.momentum = epsilon, momentum
        self.use_running_average = False
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    @property
    def observes(self) -> bool:
        """Return True where the batch's own statistics normalise it: in training, unless frozen."""
        return not self.use_running_average and not isinstance(self.mean, Frozen)

    def __call__(self, x: Float[Array, "B H W O"], counted: Bool[Array, " B"] | None = None) -> Float[Array, "B H W O"]:
        """Normalises every row with the statistics of the `counted` ones; without it all count."""
        wide = at_least_float32(x)
        mean, var = self.mean[...], self.var[...]
        if self.observes:
            mean, var = self._observe(wide, counted)
        scale, shift = _scale_and_shift(mean, var, self.scale[...], self.bias[...], self.epsilon)
        return (wide * scale + shift).astype(x.dtype)

    def _observe(
        self, x: Float[Array, "B H W O"], counted: Bool[Array, " B"] | None
    ) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
        """Mean and variance of the batch, which also move the running ones."""
        weight = jnp.ones_like(x[:, :1, :1, :1]) if counted is None else counted.astype(x.dtype)[:, None, None, None]
        count = jax.lax.psum(jnp.sum(weight) * (x.shape[1] * x.shape[2]), DATA_AXIS)
        divisor = jnp.maximum(count, 1)
        mean = jax.lax.psum(jnp.sum(x * weight, axis=(0, 1, 2)), DATA_AXIS) / divisor
        var = jax.lax.psum(jnp.sum(jnp.square(x - mean) * weight, axis=(0, 1, 2)), DATA_AXIS) / divisor
        step = jnp.where(count > 1, 1 - self.momentum, 0.0)
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        self.mean[...] += step * jax.lax.stop_gradient(mean - self.mean[...])
        self.var[...] += step * jax.lax.stop_gradient(unbiased - self.var[...])
        return mean, var


@dataclass(frozen=True)
class NormConfig:
    """The normalisation after a convolution.

    `frozen_batch_norm` never changes; `batch_norm` is synchronised over all devices in training, and fixed in frozen
    stages; `layer_norm` is of the channels of each place; `none` adds nothing, and the convolution has a bias instead.
    """

    kind: Literal["frozen_batch_norm", "batch_norm", "group_norm", "layer_norm", "none"] = "frozen_batch_norm"
    epsilon: Share = 1e-5  # Detectron2's layer norm: 1e-6
    momentum: Share = 0.9  # of batch norm's running statistics
    groups: Channels = 32  # of group norm

    def check_channels(self, name: str, channels: int) -> None:
        """Raise ValueError where group norm cannot share out the channels that `name` has."""
        if self.kind == "group_norm" and channels % max(self.groups, 1):
            raise ValueError(f"{name} {channels} must be a multiple of norm.groups {self.groups}")

    def build(self, features: int, rngs: nnx.Rngs) -> nnx.Module | None:
        match self.kind:
            case "frozen_batch_norm":
                return FrozenBatchNorm(features, self.epsilon)
            case "batch_norm":
                return BatchNorm(features, self.epsilon, self.momentum)
            case "group_norm":
                return nnx.GroupNorm(
                    features, num_groups=self.groups, epsilon=self.epsilon, use_fast_variance=False, rngs=rngs
                )
            case "layer_norm":
                return nnx.LayerNorm(features, epsilon=self.epsilon, use_fast_variance=False, rngs=rngs)
            case "none":
                return None
