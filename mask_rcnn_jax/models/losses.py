"""Elementwise losses, and means whose denominators can be summed over devices first."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mask_rcnn_jax.ops.precision import at_least_float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A mean kept as its sum and its count, so that devices with different counts average correctly."""

    total: Float[Array, "*B"]
    count: Float[Array, "*B"]

    @property
    def value(self) -> Float[Array, "*B"]:
        """The mean; 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


def masked_mean(values: Shaped[Array, "*N"], mask: Bool[Array, "*N"]) -> Mean:
    """The mean of `values` where `mask` holds. What is masked out may be anything finite."""
    mask = at_least_float32(mask)
    return Mean(jnp.sum(at_least_float32(values) * mask), jnp.sum(mask))


def counted(mask: Bool[Array, "*N"]) -> Mean:
    """Count the True entries of `mask` in one image; summed over images, the mean per image."""
    return Mean(jnp.sum(mask, dtype=jnp.float32), jnp.float32(1))


def counted_by_iou(name: str, iou: Float[Array, " N"], mask: Bool[Array, " N"]) -> dict[str, Mean]:
    """Of one image, how many boxes in `mask` have an IoU from .0, .1, ..., .9 on; the keys are `name/0.0` and so on."""
    tenth = jnp.minimum(jnp.floor(iou * 10), 9)
    return {f"{name}/{i / 10}": counted(mask & (tenth == i)) for i in range(10)}


def smooth_l1(error: Float[Array, "*N"], beta: float) -> Float[Array, "*N"]:
    """Huber's loss scaled to slope 1 (Fast R-CNN, equation 3); L1 for `beta` 0."""
    magnitude = jnp.abs(error)
    if beta == 0.0:
        return magnitude
    return jnp.where(magnitude < beta, 0.5 * error**2 / beta, magnitude - 0.5 * beta)


def binary_cross_entropy(logits: Float[Array, "*N"], targets: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Cross-entropy of a sigmoid, stable for large logits."""
    return targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)


def softmax_cross_entropy(logits: Float[Array, "*N K"], classes: Int[Array, "*N"]) -> Float[Array, "*N"]:
    """Cross-entropy of a softmax; a product with one-hot rows, so that its gradient scatters nothing."""
    of_class = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(jax.nn.log_softmax(logits, axis=-1) * of_class, axis=-1)
