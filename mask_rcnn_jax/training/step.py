"""One training step over all devices: `jit(shard_map(step))` on a mesh with the axis `data`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import DATA_AXIS, Mean, Variables, init, loss_terms
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training.config import ExperimentConfig

Measures = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What changes from step to step, the same on every device. `step` counts finished steps."""

    step: Int[Array, ""]
    variables: Variables
    optimizer: Any  # optax's state; None for weights that only predict


def make_mesh(batch_size: int) -> Mesh:
    """All devices along the axis `data`. Raises UserError where they cannot share the batch equally."""
    devices = jax.devices()
    if batch_size % len(devices):
        raise UserError(
            f"batch_size={batch_size} cannot be shared equally by {len(devices)} devices; make it a multiple of them"
        )
    return Mesh(devices, (DATA_AXIS,))


def make_optimizer(config: ExperimentConfig) -> optax.GradientTransformation:
    return config.optimizer.build(config.schedule.build(config.steps))


def init_state(config: ExperimentConfig, variables: Variables | None = None) -> TrainState:
    """The state before the first step: `variables`, or random ones drawn from the seed."""
    if variables is None:
        variables = init(config.model, jax.random.key(config.seed))
    return TrainState(jnp.int32(0), variables, make_optimizer(config).init(variables.params))


def make_train_step(config: ExperimentConfig, mesh: Mesh) -> Callable[[TrainState, Batch], tuple[TrainState, Measures]]:
    """The compiled step: a state (given up) and a global batch give the next state and the batch's measures.

    Losses are divided by counts over the whole batch, not by those of a device. Sampling draws from keys folded by
    step and example, so that the numbers do not depend on how many devices share the batch.
    """
    optimizer, schedule = make_optimizer(config), config.schedule.build(config.steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measures]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.example_index)

        def loss_of(params: Any) -> tuple[Float[Array, ""], tuple[Measures, Any]]:
            variables = Variables(params, state.variables.buffers)
            terms, buffers = loss_terms(config.model, variables, batch, keys)
            # Sums meet inside the differentiated function: the gradient of a replicated parameter is then summed
            # over devices by the transposition itself.
            terms = jax.lax.psum(terms, DATA_AXIS)
            measures = {name: term.value for name, term in terms.items() if isinstance(term, Mean)}
            loss = sum((value for name, value in measures.items() if name.startswith("loss/")), jnp.float32(0))
            return loss, (measures, buffers)

        params = state.variables.params
        (loss, (measures, buffers)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, params)
        measures |= {
            "loss": loss,
            "learning_rate": schedule(state.step),
            "gradient_norm": optax.tree.norm(gradients),
        }
        params = jax.tree.map(jnp.add, params, updates)
        variables = Variables(params, buffers)
        return TrainState(state.step + 1, variables, optimizer_state), measures

    sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=P())
    return jax.jit(sharded, donate_argnums=0)


def replicate(state: TrainState, mesh: Mesh) -> TrainState:
    return jax.device_put(state, NamedSharding(mesh, P()))


def shard(batch: Batch, mesh: Mesh) -> Batch:
    return jax.device_put(batch, NamedSharding(mesh, P(DATA_AXIS)))
