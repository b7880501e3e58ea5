"""Batches of training whose content does not matter, and steps on one batch."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.structures import Batch, GroundTruth
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import init_state, make_mesh, make_train_step, replicate, shard


def abstract_batch(config: ExperimentConfig, size: tuple[int, int]) -> Batch:
    """The shapes and types of a batch as the pipeline gives it."""

    def of(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

    slots, grid = config.data.max_instances, config.data.mask_crop
    boxes, numbers = of(jnp.float32, slots, 4), of(jnp.int32, slots)
    truth = GroundTruth(boxes, numbers, of(jnp.uint8, slots, grid, grid), of(jnp.bool_, slots))
    return Batch(of(jnp.uint8, *size, 3), of(jnp.int32, 2), truth, of(jnp.int32))


def random_batch(config: ExperimentConfig, size: tuple[int, int]) -> Batch:
    """Noise of (height, width) `size` with eight squares in each image."""
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_batch(config, size))
    corner = jnp.arange(8.0)[:, None] * min(size) / 12
    boxes = batch.ground_truth.boxes.at[:, :8].set(jnp.concatenate([corner, corner, corner + 60, corner + 60], axis=1))
    truth = replace(
        batch.ground_truth,
        boxes=boxes,
        masks=jnp.full_like(batch.ground_truth.masks, 255),
        valid=batch.ground_truth.valid.at[:, :8].set(True),
    )
    images = jax.random.randint(jax.random.key(0), batch.images.shape, 0, 256).astype(jnp.uint8)
    index = jnp.arange(config.batch_size, dtype=jnp.int32)
    return Batch(images, jnp.broadcast_to(jnp.array(size, jnp.int32), batch.image_sizes.shape), truth, index)


class Repeated:
    """A compiled function of a state, which it gives up; each call goes on from the state that the one before gave."""

    def __init__(self, function: Any, state: Any, *given: Any):
        self.program = function.lower(state, *given).compile()
        self._state, self._given = state, given

    def __call__(self) -> Any:
        self._state, measures = self.program(self._state, *self._given)
        return self._state, measures


def repeated_step(config: ExperimentConfig, batch: Batch, variables: Variables | None = None) -> Repeated:
    """The compiled training step, at the learning rate and with the samples of the first one."""
    mesh = make_mesh(config)
    # A copy: a step gives up its state.
    state = replicate(init_state(config, jax.tree.map(jnp.copy, variables)), mesh)
    step = make_train_step(config, mesh)
    return Repeated(step.program, state, shard(batch, mesh), step.hyperparameters(state.step))
