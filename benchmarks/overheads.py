"""The training step's cost of safety, and the gain of rematerialisation.

    python -m benchmarks.overheads

R50-FPN, random weights, SGD with momentum. `finite`: the end of the step (norms of the gradients, check, update) beside
the same that keeps what it computed whether or not it is finite, in turn; and the whole step. `remat`: bytes that the
forward pass keeps for the backward pass, parameters left out, by what is computed again for the gradients. It is
counted from shapes, for XLA's programs for CPU save nothing: they compute again early and keep what they have.
"""

import argparse
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.batches import Repeated, random_batch, repeated_step
from benchmarks.machine import machine, sentence
from benchmarks.side_by_side import Call, Sides, measure
from mask_rcnn_jax.models import MaskRCNNConfig, Variables, init, loss_terms
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.hyperparameters import Hyperparameters, hyperparameters
from mask_rcnn_jax.training.step import TrainState, apply_gradients, init_state

_REMAT = ((), ("backbone",), ("rpn", "box_head", "mask_head"), ("backbone", "rpn", "box_head", "mask_head"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("finite", "remat"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--depth", type=int, default=50, choices=(18, 50), help="of the ResNet")
    options = parser.parse_args()
    print(sentence(machine("jax", "jaxlib")))
    model = MaskRCNNConfig()
    bottom_up = replace(model.backbone.bottom_up, depth=options.depth)  # pyright: ignore[reportAttributeAccessIssue]
    model = replace(model, backbone=replace(model.backbone, bottom_up=bottom_up))
    config = ExperimentConfig(model=model, batch_size=options.batch_size)
    batch = random_batch(config, tuple(options.size))
    if options.only != "remat":
        print_finite(config, batch, options.rounds)
    if options.only != "finite":
        print_remat(config, batch)


def print_finite(config: ExperimentConfig, batch: Batch, rounds: int) -> None:
    """Whole steps differ by more than the check costs, whatever the check does: so its part is measured by itself."""
    cond = jax.lax.cond

    def without_check(accepted: Any, updated: Any, kept: Any, *operands: Any) -> Any:
        return cond(accepted, updated, kept, *operands) if operands else updated()  # the step's own has no operands

    checked = repeated_end(config)
    with mock.patch("jax.lax.cond", without_check):
        unchecked = repeated_end(config)
    end = measure(Sides(checked, {"unchecked": unchecked}), rounds)
    step = measure(Sides(repeated_step(config, batch), {}), rounds)["ours"]
    for name, seconds in (("with", end["ours"]), ("without", end["unchecked"])):
        print(f"end of the step {name} the check {1e3 * seconds:.1f} ms, {100 * seconds / step:.2f} % of the step")
    print(f"step {step:.3f} s; the check takes {100 * (end['ours'] - end['unchecked']) / step:+.3f} % of it")


def repeated_end(config: ExperimentConfig) -> Call:
    """Compile what a step does once it has its gradients."""
    state = init_state(config)
    gradients = jax.tree.map(jnp.ones_like, state.variables.params)

    def end(state: TrainState, gradients: Any, given: Hyperparameters) -> Any:
        return apply_gradients(given, state, jnp.float32(1), gradients, state.variables.buffers)

    given = jax.jit(hyperparameters, static_argnums=0)(config, state.step)
    return Repeated(jax.jit(end, donate_argnums=0), state, gradients, given)


def print_remat(config: ExperimentConfig, batch: Batch) -> None:
    for parts in _REMAT:
        kept = kept_bytes(replace(config.model, remat=parts), batch)
        print(f"{', '.join(parts) or 'nothing'} computed again: {kept / 2**30:.2f} GiB kept")


def kept_bytes(model: MaskRCNNConfig, batch: Batch) -> int:
    """Measure what the losses' gradient function holds beside the parameters."""

    def kept(params: Any, buffers: Any, keys: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            terms, _ = loss_terms(model, Variables(params, buffers), batch, keys)
            return sum((term.value for term in terms.values()), jnp.float32(0))

        return jax.vjp(loss, params)[1]

    variables = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(batch.images)))
    everything = jax.tree.leaves(jax.eval_shape(kept, variables.params, variables.buffers, keys))
    return sum(x.size * x.dtype.itemsize for x in everything) - sum(4 * x.size for x in jax.tree.leaves(variables))


if __name__ == "__main__":
    main()
