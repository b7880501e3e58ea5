"""Some steps of training on a mesh of some devices, for what tests compare."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mask_rcnn_jax.models import Variables, loss_terms
from mask_rcnn_jax.sharding import data_mesh
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import TrainState, init_state, make_train_step, replicate, shard


def mesh_of(devices: int) -> Mesh:
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    return data_mesh(jax.devices()[:devices])


def take_steps(
    config: ExperimentConfig,
    devices: int,
    batches: Callable[[int], Batch],
    steps: int,
    loss: Any = loss_terms,
    variables: Variables | None = None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after `steps` steps, each on the batch that `batches` has for its number, and all measures."""
    mesh = mesh_of(devices)
    state, step_fn = replicate(init_state(config, variables), mesh), make_train_step(config, mesh, loss)
    history = []
    for step in range(steps):
        index = np.arange(config.batch_size, dtype=np.int32) + step * config.batch_size
        state, measures = step_fn(state, shard(replace(batches(step), example_index=index), mesh))
        history.append({name: float(value) for name, value in measures.items()})
    return jax.device_get(state), history
