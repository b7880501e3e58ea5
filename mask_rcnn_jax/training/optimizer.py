"""Optimizers and learning-rate schedules, assembled from optax."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mask_rcnn_jax.ranges import AboveZero, AddedLater, AtLeastZero, BelowOne, NotNegative, Range, Share

Number = float | Float[Array, ""]
LayerDecay = Annotated[float, Range(0, 1, above_low=True), AddedLater()]


@dataclass(frozen=True)
class StepDecay:
    """Multiplies the learning rate by `factor` at each of the `milestones`."""

    milestones: tuple[NotNegative, ...] = (60_000, 80_000)
    factor: AtLeastZero = 0.1


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine from the base rate at step 0 to `final_factor` times it at the last step."""

    final_factor: AtLeastZero = 0.0


@dataclass(frozen=True)
class ScheduleConfig:
    learning_rate: Annotated[float, Range(0, 10**9)] = 0.02
    warmup_steps: NotNegative = 1000  # linear, from `warmup_factor` times the scheduled rate
    warmup_factor: AtLeastZero = 0.001
    decay: StepDecay | CosineDecay = StepDecay()

    def build(self, total_steps: int) -> Callable[[ArrayLike], Array]:
        """The learning rate by step. Warm-up multiplies the decayed rate, as in Detectron2."""

        def schedule(step: ArrayLike) -> Array:
            step = jnp.asarray(step, jnp.float32)
            match self.decay:
                case StepDecay(milestones, factor):
                    passed = sum((step >= milestone).astype(jnp.float32) for milestone in milestones)
                    decayed = jnp.asarray(factor, jnp.float32) ** passed
                case CosineDecay(final_factor):
                    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / total_steps, 0, 1)))
                    decayed = final_factor + (1 - final_factor) * cosine
            warmed = jnp.clip(step / max(self.warmup_steps, 1), 0, 1)
            warmup = self.warmup_factor + (1 - self.warmup_factor) * warmed if self.warmup_steps else 1.0
            return self.learning_rate * decayed * warmup

        return schedule


@dataclass(frozen=True)
class SGDConfig:
    """SGD with momentum and weight decay inside the gradient, as PyTorch has it."""

    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: AtLeastZero = 1e-4  # of weights and biases
    weight_decay_norm: AtLeastZero = 0.0  # of a norm's scale and bias, and of tables of positions
    clip_norm: AboveZero | None = None  # largest global norm of the gradient
    layer_decay: LayerDecay = 1.0  # of the learning rate, from each of the backbone's layers to the one before

    def at(self, learning_rate: Number, factors: Any = None) -> "SGD":
        """Return the optimizer of a step with this learning rate, times `factors`, one for each parameter."""
        decay = self.weight_decay or None, self.weight_decay_norm or None
        return SGD(learning_rate, factors, self.clip_norm, *decay, self.momentum, self.nesterov)


@dataclass(frozen=True)
class AdamWConfig:
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    b1: BelowOne = 0.9
    b2: BelowOne = 0.999
    epsilon: Annotated[float, Range(0, 1, above_low=True)] = 1e-8
    weight_decay: AtLeastZero = 0.05
    weight_decay_norm: AtLeastZero = 0.0
    clip_norm: AboveZero | None = None
    layer_decay: LayerDecay = 1.0

    def at(self, learning_rate: Number, factors: Any = None) -> "AdamW":
        """Return the optimizer of a step with this learning rate, times `factors`, one for each parameter."""
        decay = self.weight_decay or None, self.weight_decay_norm or None
        return AdamW(learning_rate, factors, self.clip_norm, *decay, self.b1, self.b2, self.epsilon)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SGD:
    """SGD at one step. Its numbers are leaves of a pytree, so that a compiled step can take them as inputs."""

    learning_rate: Number
    factors: Any  # of the learning rate, a tree of numbers like the parameters; None where all are 1
    clip_norm: Number | None
    weight_decay: Number | None  # None for 0: no program reads parameters to add nothing of them
    weight_decay_norm: Number | None
    momentum: Number
    nesterov: bool = field(metadata={"static": True})

    def build(self) -> optax.GradientTransformation:
        return optax.chain(
            _clip(self.clip_norm),
            optax.add_decayed_weights(_or_zero(self.weight_decay), mask=_not_of_norms),
            optax.add_decayed_weights(_or_zero(self.weight_decay_norm), mask=_of_norms),
            optax.trace(self.momentum, nesterov=self.nesterov),
            _scale(self.learning_rate, self.factors),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdamW:
    """AdamW at one step, with leaves as `SGD` has them.

    The decay rates of its moments are none: from a float32 input, 1 - .999 is wrong in the fifth digit.
    """

    learning_rate: Number
    factors: Any
    clip_norm: Number | None
    weight_decay: Number | None
    weight_decay_norm: Number | None
    b1: float = field(metadata={"static": True})
    b2: float = field(metadata={"static": True})
    epsilon: float = field(metadata={"static": True})

    def build(self) -> optax.GradientTransformation:
        return optax.chain(
            _clip(self.clip_norm),
            optax.scale_by_adam(self.b1, self.b2, self.epsilon),
            optax.add_decayed_weights(_or_zero(self.weight_decay), mask=_not_of_norms),
            optax.add_decayed_weights(_or_zero(self.weight_decay_norm), mask=_of_norms),
            _scale(self.learning_rate, self.factors),
        )


def _scale(learning_rate: Number, factors: Any) -> optax.GradientTransformation:
    """Scale updates by the negative learning rate, and by the factor of each parameter.

    As a schedule that ignores optax's count of updates, which lags behind the run's steps where steps are skipped. The
    state has that count nevertheless, as checkpoints hold it.
    """
    scale = optax.scale_by_learning_rate(lambda count: learning_rate)
    if factors is None:
        return scale

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled, state = scale.update(updates, state, params)
        return jax.tree.map(jnp.multiply, scaled, factors), state

    return optax.GradientTransformation(scale.init, update)


def _or_zero(weight_decay: Number | None) -> Number:
    return 0.0 if weight_decay is None else weight_decay


def _clip(norm: Number | None) -> optax.GradientTransformation:
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)


def _of_norms(params: Any) -> Any:
    """True at the parameters of a norm, and at tables of positions; `models` calls these `norm` and `positions`."""
    names = {jax.tree_util.DictKey(name) for name in ("norm", "positions")}
    return jax.tree_util.tree_map_with_path(lambda path, _: not names.isdisjoint(path), params)


def _not_of_norms(params: Any) -> Any:
    return jax.tree.map(lambda of_norm: not of_norm, _of_norms(params))
