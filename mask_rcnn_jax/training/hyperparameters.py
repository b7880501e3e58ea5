"""The numbers of a step that are inputs of its compiled program, and not constants in it.

Runs that differ in their seed, length, schedule, limits and the optimizer's numbers share one program: on one machine
also through the compilation cache.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from mask_rcnn_jax.models import abstract
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
        optimizer=config.optimizer.at(config.schedule.build(config.steps)(step), learning_rate_factors(config)),
        max_skipped_steps=config.max_skipped_steps,
        average_rate=1 - config.ema_decay,
    )


def learning_rate_factors(config: ExperimentConfig) -> Any:
    """Compute the factor of each parameter's learning rate, a tree like `Variables.params`; None where all are 1.

    It falls from layer to layer of the backbone by `layer_decay` (Clark et al. 2020, https://arxiv.org/abs/2003.10555).
    """
    decay, backbone = config.optimizer.layer_decay, config.model.backbone
    if decay == 1:
        return None

    def factor(path: tuple[Any, ...], _: jax.ShapeDtypeStruct) -> np.float32:
        part, *inside = (key.key for key in path)
        below = backbone.layers - backbone.layer_of(tuple(inside)) if part == "backbone" else 0
        return np.float32(decay**below)

    return jax.tree_util.tree_map_with_path(factor, abstract(config.model).params)
