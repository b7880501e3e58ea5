"""Finds the first tensor of a step that is not finite. Compiled only when a step has gone wrong.

Shape letters: `B` images of this process, or of one part of them with gradient accumulation.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mask_rcnn_jax.models import MaskRCNNConfig, Variables, loss_terms
from mask_rcnn_jax.sharding import DATA_AXIS, EVERYWHERE, ROWS, by_rows, data_mesh, everywhere
from mask_rcnn_jax.structures import Batch, TrainBatch
from mask_rcnn_jax.training.config import ExperimentConfig

NOTHING = "nothing when the step is repeated"

# Networks from the loss back: a bad gradient spoils what it passes through afterwards.
# Heads that are not named here come first.
_BACKWARDS = ("mask_head", "keypoint_head", "cascade", "box_head", "trunk", "res5", "rpn", "backbone")
# Within a network the layers before its outputs, from the first on; what is not here stands at the output.
_FORWARDS = ("stem", "bottom_up", "res", "conv", "fc", "deconv", "lateral", "output")


def diagnose(config: ExperimentConfig, variables: Variables, batch: TrainBatch, step: int) -> str:
    """Repeats a step, counted from 1, and names the first tensor that is not finite: an input, a parameter, what a
    stage made, a loss; or the stage and the parameter nearest to the loss whose gradient is not.

    `batch` holds this process's rows. With several processes the statistics of a batch norm and the counts that divide
    losses are those of these rows alone.
    """
    rows, parts = len(batch.inputs.images), config.accumulation_steps
    devices = math.gcd(jax.local_device_count(), rows // parts)
    mesh = data_mesh(jax.local_devices()[:devices])
    variables = jax.device_put(jax.device_get(variables), everywhere(mesh))
    # The step gives every device its rows first, and divides those into parts.
    order = np.arange(rows).reshape(devices, parts, -1)
    largest: dict[str, float] = {}
    for part in range(parts):
        chosen = order[:, part].reshape(-1)
        share = jax.tree.map(lambda x, chosen=chosen: x[chosen], batch.inputs)
        key = jax.random.fold_in(jax.random.key(config.seed), step - 1)
        inputs = (variables, jax.device_put(share, by_rows(mesh)), jax.device_put(key, everywhere(mesh)))
        flags, gradients = _program(config.model, mesh)(*inputs)
        images = batch.image_ids[chosen].tolist()
        if found := _first_bad(variables, flags, gradients, images):
            return found
        largest |= {name: max(value, largest.get(name, 0.0)) for name, value in gradients.items()}
    name = max(largest, key=lambda name: largest[name])
    return f"{NOTHING}; the largest gradient is {largest[name]:.3g}, that of {name}"


def _first_bad(
    variables: Variables, flags: Mapping[str, Mapping[str, np.ndarray]], gradients: Mapping[str, Any], images: list[int]
) -> str | None:
    def of(good: Bool[np.ndarray, " B"]) -> str:
        bad = [image for image, fine in zip(images, good.tolist(), strict=True) if not fine]
        return "every image" if len(bad) == len(images) > 1 else f"image {', '.join(map(str, bad))}"

    for name, good in flags["inputs"].items():
        if not good.all():
            return f"{name} of {of(good)}"
    for name, value in named(jax.device_get(variables)).items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            return f"the parameter {name} itself"
    for name, good in flags["made"].items():
        if not good.all():
            return f"{name} of {of(good)}"
    bad = sorted((name for name, value in gradients.items() if not math.isfinite(value)), key=_from_the_loss)
    if not bad:
        return None
    parameters = f"the gradient of the parameter {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
    stages = [(name, good) for name, good in flags["gradients"].items() if not good.all()]
    return parameters + (f", behind that of {stages[-1][0]} of {of(stages[-1][1])}" if stages else "")


@functools.lru_cache(maxsize=1)
def _program(model: MaskRCNNConfig, mesh: Mesh) -> Any:
    """The compiled step, without its update: which rows of which tensors are finite, by name and in their order, and
    the greatest magnitude in each parameter's gradient.
    """

    def inspect(variables: Variables, batch: Batch, key: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.example_index)
        inputs = {"ground-truth boxes": batch.ground_truth.boxes, "images": batch.images}

        def sums(params: Any, observe: Any) -> Any:
            terms, _ = loss_terms(model, Variables(params, variables.buffers), batch, keys, observe)
            return terms

        names.clear()
        jax.eval_shape(lambda params: sums(params, functools.partial(_collect, names)), variables.params)

        def loss_of(params: Any, probes: dict[str, Float[Array, " B"]]) -> Any:
            made: dict[str, Bool[Array, " B"]] = {}
            terms = jax.lax.psum(sums(params, functools.partial(_look, made, probes)), DATA_AXIS)
            loss = sum((term.value for name, term in terms.items() if name.startswith("loss/")), jnp.float32(0))
            return loss, made

        # Zeros that are added to what a stage made: their gradients are sums of the stage's.
        probes = {name: jnp.zeros(len(batch.images)) for name in names}
        params, probes = jax.tree.map(lambda x: jax.lax.pcast(x, DATA_AXIS, to="varying"), (variables.params, probes))
        (gradients, of_made), made = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(params, probes)
        magnitudes = jax.tree.map(lambda x: jnp.max(jnp.abs(x)), jax.lax.psum(gradients, DATA_AXIS))
        flags = {"inputs": jax.tree.map(_finite_rows, inputs), "made": made}
        return flags | {"gradients": jax.tree.map(jnp.isfinite, of_made)}, magnitudes

    names: list[str] = []  # in the order of the stages; jax sorts the keys of dictionaries
    specs = {"in_specs": (EVERYWHERE, ROWS, EVERYWHERE), "out_specs": (ROWS, EVERYWHERE)}
    compiled = jax.jit(jax.shard_map(inspect, mesh=mesh, **specs))

    def run(variables: Variables, batch: Batch, key: Any) -> Any:
        flags, magnitudes = jax.device_get(compiled(variables, batch, key))
        ordered = {what: {name: flags[what][name] for name in names} for what in ("made", "gradients")}
        return flags | ordered, named(magnitudes)

    return run


def _collect(names: list[str], stage: str, made: Any) -> Any:
    names += _tensors(stage, made)
    return made


def _look(seen: dict[str, Bool[Array, " B"]], probes: Mapping[str, Float[Array, " B"]], stage: str, made: Any) -> Any:
    """Notes which rows are finite, and adds the probes."""
    tensors = _tensors(stage, made)
    seen |= {name: _finite_rows(x) for name, x in tensors.items()}
    probed = [x + _as_rows(probes[name], x) for name, x in tensors.items()]
    leaves, structure = jax.tree.flatten(made)
    rest = iter(probed)
    return structure.unflatten([next(rest) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in leaves])


def _tensors(stage: str, made: Any) -> dict[str, Array]:
    """The tensors of a stage that could be other than finite, by the name under which they are reported."""
    leaves = jax.tree_util.tree_leaves_with_path(made)
    return {" ".join([stage, *map(_key, path)]): x for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}


def named(tree: Any) -> dict[str, Any]:
    """Leaves by `network/layer/name`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_key(key) for key in path if _key(key) not in ("params", "buffers")): x for path, x in leaves}


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _finite_rows(x: Array) -> Bool[Array, " B"]:
    return jnp.isfinite(x).reshape(len(x), -1).all(axis=1)


def _as_rows(probe: Float[Array, " B"], x: Array) -> Array:
    return probe.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)


def _from_the_loss(name: str) -> tuple[int, tuple[int, ...]]:
    network, *layers = name.split("/")
    depth = [next((i for i, part in enumerate(_FORWARDS) if layer.startswith(part)), 99) for layer in layers]
    number = [int("".join(filter(str.isdigit, layer)) or 0) for layer in layers]
    order = _BACKWARDS.index(network) if network in _BACKWARDS else -1
    return order, tuple(-value for pair in zip(depth, number, strict=True) for value in pair)
