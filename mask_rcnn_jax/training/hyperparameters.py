"""The numbers of a step that are inputs of its compiled program, and not constants in it.

Runs that differ in their seed, length, schedule, limits and the optimizer's numbers share one program: on one machine
also through the compilation cache.
"""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Int, Key

from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.optimizer import SGD, AdamW, Number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyperparameters:
    """Those of one step, the same on every device."""

    key: Key[Array, ""]  # of the run; each step and example folds its number into it
    optimizer: SGD | AdamW
    max_skipped_steps: int | Int[Array, ""]
    average_rate: Number  # at which the average moves to the parameters: 1 - ema_decay


def hyperparameters(config: ExperimentConfig, step: Int[Array, ""]) -> Hyperparameters:
    """Compute those of the step after `step` finished ones."""
    return Hyperparameters(
        key=jax.random.key(config.seed),
        optimizer=config.optimizer.at(config.schedule.build(config.steps)(step)),
        max_skipped_steps=config.max_skipped_steps,
        average_rate=1 - config.ema_decay,
    )
