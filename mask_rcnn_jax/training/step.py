"""One training step over all devices: `jit(shard_map(step))` on a mesh with the axis `data`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, Mean, Variables, init, loss_terms
from mask_rcnn_jax.sharding import DATA_AXIS, EVERYWHERE, ROWS, by_rows, data_mesh, everywhere
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.hyperparameters import Hyperparameters, hyperparameters
from mask_rcnn_jax.training.optimizer import Number

Measures = dict[str, Float[Array, ""]]
Loss = Callable[[MaskRCNNConfig, Variables, Batch, Key[Array, " B"]], tuple[dict[str, Mean], Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that a step replaces, equal on every device. `step` counts finished steps, skipped ones as well."""

    step: Int[Array, ""]
    variables: Variables
    optimizer: Any  # optax's state; None for weights that only predict
    average: Any = None  # exponential moving average of `variables.params`; None without one
    # How many of the last steps in a row were not finite.
    skipped: Int[Array, ""] = field(default_factory=lambda: jnp.int32(0))

    def averaged(self) -> Variables:
        """The variables with the averaged parameters in place of the raw ones."""
        return Variables(self.average, self.variables.buffers)


def make_mesh(config: ExperimentConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices, by default all of all processes, along the axis `data`.

    Raises UserError where they cannot share the batch as the configuration says.
    """
    devices, steps, size = devices or jax.devices(), config.accumulation_steps, config.batch_size
    if config.images_per_device is not None:
        total = len(devices) * config.images_per_device * steps
        if total != size:
            raise UserError(
                f"batch_size={size} is not {len(devices)} devices * images_per_device={config.images_per_device} *"
                f" accumulation_steps={steps} = {total}; change one of them"
            )
    elif size % (len(devices) * steps):
        times = f" in accumulation_steps={steps}" if steps > 1 else ""
        raise UserError(
            f"batch_size={size} cannot be shared equally by {len(devices)} devices{times}; make it a multiple of"
            f" {len(devices) * steps}"
        )
    return data_mesh(devices)


def init_state(config: ExperimentConfig, variables: Variables | None = None) -> TrainState:
    """The state before the first step: `variables`, or random ones drawn from the seed."""
    if variables is None:
        variables = init(config.model, jax.random.key(config.seed))
    average = jax.tree.map(jnp.copy, variables.params) if config.ema_decay else None
    optimizer = config.optimizer.at(config.schedule.learning_rate).build()
    return TrainState(jnp.int32(0), variables, optimizer.init(variables.params), average, jnp.int32(0))


@dataclass(frozen=True)
class TrainStep:
    """The compiled step: a state (given up) and a global batch give the next state and the batch's measures."""

    program: Any  # jitted; takes a state, a batch and hyperparameters
    hyperparameters: Any  # jitted; takes the number of finished steps

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Measures]:
        return self.program(state, batch, self.hyperparameters(state.step))

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Lower the program for a state and a batch like these, which may be shapes."""
        return self.program.lower(state, batch, jax.eval_shape(self.hyperparameters, state.step))


def make_train_step(config: ExperimentConfig, mesh: Mesh, loss: Loss = loss_terms) -> TrainStep:
    """Return the step of an experiment.

    `loss` takes what `loss_terms` takes. Losses are divided by counts over the whole batch, not by those of a device.
    Sampling draws from keys folded by step and example, so that the numbers do not depend on how many devices share the
    batch.
    """
    # A program of its own, of a few scalars: the large one then holds nothing that differs from run to run.
    inputs = jax.jit(functools.partial(hyperparameters, config), out_shardings=everywhere(mesh))
    return TrainStep(_program(loss, config.model, config.accumulation_steps, mesh), inputs)


@functools.lru_cache(maxsize=8)
def _program(loss: Loss, model: MaskRCNNConfig, accumulation_steps: int, mesh: Mesh) -> Any:
    """The jitted step. Whatever else an experiment sets is an input, of which it is compiled for the structure only."""

    def step(state: TrainState, batch: Batch, given: Hyperparameters) -> tuple[TrainState, Measures]:
        key = jax.random.fold_in(given.key, state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.example_index)

        def loss_of(params: Any) -> tuple[Float[Array, ""], tuple[Measures, Any]]:
            variables = Variables(params, state.variables.buffers)
            terms, buffers = _terms(functools.partial(loss, model), accumulation_steps, variables, batch, keys)
            # Sums meet inside the differentiated function, so that the gradient is that of the global mean; as one
            # array, so that every gradient follows it: else XLA sums some gradients together with some losses.
            sums, as_terms = ravel_pytree(terms)
            terms = as_terms(jax.lax.psum(sums, DATA_AXIS))
            measures = {name: term.value for name, term in terms.items() if isinstance(term, Mean)}
            total = sum((value for name, value in measures.items() if name.startswith("loss/")), jnp.float32(0))
            return total, (measures, buffers)

        # As values of the device, so that the gradient is summed over devices once, and not wherever one is used.
        of_device = jax.tree.map(lambda x: jax.lax.pcast(x, DATA_AXIS, to="varying"), state.variables.params)
        (total, (measures, buffers)), gradients = jax.value_and_grad(loss_of, has_aux=True)(of_device)
        gradients = jax.lax.psum(gradients, DATA_AXIS)
        state, about_gradients = apply_gradients(given, state, total, gradients, buffers)
        return state, measures | {"loss": total} | about_gradients

    sharded = jax.shard_map(step, mesh=mesh, in_specs=(EVERYWHERE, ROWS, EVERYWHERE), out_specs=EVERYWHERE)
    return jax.jit(sharded, donate_argnums=0)


@jax.named_scope("optimizer")
def apply_gradients(
    given: Hyperparameters, state: TrainState, loss: Float[Array, ""], gradients: Any, buffers: Any
) -> tuple[TrainState, Measures]:
    """The state after a step that found this loss, gradients and buffers, and what is measured of it.

    A step whose loss or gradient is not finite changes nothing but the counts of steps; nor does any after more than
    `max_skipped_steps` such steps in a row, so that the state is kept in which it happened. The learning rate goes by
    steps, skipped ones included, as in Detectron2.
    """
    norms = _norms(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norms["gradient_norm"])
    accepted = finite & (state.skipped <= given.max_skipped_steps)
    skipped = jnp.where(accepted, 0, state.skipped + 1)

    def updated() -> tuple[Variables, Any, Any]:
        params = state.variables.params
        updates, optimizer_state = given.optimizer.build().update(gradients, state.optimizer, params)
        changed = jax.tree.map(jnp.add, params, updates)
        return Variables(changed, buffers), optimizer_state, _moved(given.average_rate, state.average, changed)

    def kept() -> tuple[Variables, Any, Any]:
        return state.variables, state.optimizer, state.average

    # Not a choice between arrays, which has a copy of the momentum.
    variables, optimizer_state, average = jax.lax.cond(accepted, updated, kept)
    measures = {"learning_rate": given.optimizer.learning_rate, "skipped_steps": skipped} | norms
    return TrainState(state.step + 1, variables, optimizer_state, average, skipped), measures


def _terms(
    loss: Callable[[Variables, Batch, Key[Array, " B"]], tuple[dict[str, Mean], Any]],
    accumulation_steps: int,
    variables: Variables,
    batch: Batch,
    keys: Key[Array, " B"],
) -> tuple[dict[str, Mean], Any]:
    """The device's sums of the loss terms, and the updated buffers.

    With accumulation the parts of the batch follow one another, and each is computed again when its gradient is: only
    their sums are kept, so that the loss is divided by counts of the whole batch here too.
    """
    if accumulation_steps == 1:
        return loss(variables, batch, keys)

    @jax.checkpoint
    def part(buffers: Any, inputs: tuple[Batch, Key[Array, " B"]]) -> tuple[Any, dict[str, Mean]]:
        terms, buffers = loss(Variables(variables.params, buffers), *inputs)
        return buffers, terms

    parts = jax.tree.map(lambda x: x.reshape(accumulation_steps, -1, *x.shape[1:]), (batch, keys))
    buffers, terms = jax.lax.scan(part, variables.buffers, parts)
    return jax.tree.map(lambda x: x.sum(axis=0), terms), buffers


def _norms(gradients: Mapping[str, Any]) -> Measures:
    """The norm of the gradient, and of each network's part of it."""
    parts = {f"gradient_norm/{name}": optax.tree.norm(part) for name, part in gradients.items()}
    return {"gradient_norm": optax.tree.norm(parts)} | parts


def _moved(rate: Number, average: Any, params: Any) -> Any:
    """The moving average after a step."""
    return average and jax.tree.map(lambda x, y: x + rate * (y - x), average, params)


def replicate(state: TrainState, mesh: Mesh) -> TrainState:
    return jax.device_put(state, everywhere(mesh))


def shard(batch: Batch, mesh: Mesh) -> Batch:
    """The global batch, of which each process gives its share of the rows."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_rows(mesh), x), batch)
