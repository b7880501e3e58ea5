"""What the training step pays for safety, and what recomputing saves.

    python -m benchmarks.overheads

R50-FPN, random weights, SGD with momentum. `finite`: the step beside the same step that keeps what it computed whether
or not it is finite, in turn. `remat`: bytes that the forward pass keeps for the backward pass, parameters left out, by
what is computed again for the gradients. It is counted from shapes, for XLA's programs for CPU save nothing: they
compute again early and keep what they have.
"""

import argparse
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.machine import machine, sentence
from benchmarks.side_by_side import Call, Sides, measure
from mask_rcnn_jax.models import DATA_AXIS, MaskRCNNConfig, Variables, init, loss_terms
from mask_rcnn_jax.structures import Batch, GroundTruth
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import init_state, make_train_step, replicate, shard

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
    batch = scene_batch(options.batch_size, *options.size)
    if options.only != "remat":
        print_finite(config, batch, options.rounds)
    if options.only != "finite":
        print_remat(config, batch)


def print_finite(config: ExperimentConfig, batch: Batch, rounds: int) -> None:
    checked = _step(config, batch)
    with mock.patch("mask_rcnn_jax.training.step._select", lambda accepted, changed, kept: changed):
        unchecked = _step(config, batch)
    seconds = measure(Sides(checked, {"unchecked": unchecked}), rounds)
    ratio = seconds["ours"] / seconds["unchecked"]
    print(f"step {seconds['ours']:.3f} s, without the check {seconds['unchecked']:.3f} s, ratio {ratio:.4f}")


def print_remat(config: ExperimentConfig, batch: Batch) -> None:
    for parts in _REMAT:
        kept = kept_bytes(replace(config.model, remat=parts), batch)
        print(f"{', '.join(parts) or 'nothing'} computed again: {kept / 2**30:.2f} GiB kept")


def kept_bytes(model: MaskRCNNConfig, batch: Batch) -> int:
    """What the losses' gradient function holds beside the parameters."""

    def kept(params: Any, buffers: Any, keys: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            terms, _ = loss_terms(model, Variables(params, buffers), batch, keys)
            return sum((term.value for term in terms.values()), jnp.float32(0))

        return jax.vjp(loss, params)[1]

    variables = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(batch.images)))
    everything = jax.tree.leaves(jax.eval_shape(kept, variables.params, variables.buffers, keys))
    return sum(x.size * x.dtype.itemsize for x in everything) - sum(4 * x.size for x in jax.tree.leaves(variables))


def scene_batch(size: int, height: int, width: int, objects: int = 8) -> Batch:
    """Noise with `objects` boxes an image, of a sixth of its sides."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 5 / 6, (size, objects, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + np.array([width, height]) / 6], axis=-1).astype(np.float32)
    masks = np.full((size, objects, 28, 28), 255, np.uint8)
    valid = np.ones((size, objects), bool)
    truth = GroundTruth(boxes, rng.integers(0, 80, (size, objects)).astype(np.int32), masks, boxes, valid)
    images = rng.integers(0, 256, (size, height, width, 3), np.uint8)
    return Batch(images, np.full((size, 2), (height, width), np.int32), truth, np.arange(size, dtype=np.int32))


def _lowered(config: ExperimentConfig, batch: Batch) -> tuple[Any, Any, Any]:
    mesh = Mesh(jax.devices()[:1], (DATA_AXIS,))
    state, rows = replicate(init_state(config), mesh), shard(batch, mesh)
    return make_train_step(config, mesh).lower(state, rows), state, rows


def _step(config: ExperimentConfig, batch: Batch) -> Call:
    """One step after the other; each gives up the state that it starts from."""
    lowered, state, rows = _lowered(config, batch)
    compiled = lowered.compile()

    def step() -> Any:
        nonlocal state
        state, measures = compiled(state, rows)
        return measures

    return step


if __name__ == "__main__":
    main()
