"""A run of SGD in torchvision beside the same run here, step by step, in float64.

Both programs start from the same weights and take the same images at every step, each with its own proposals; both
samplers take the candidates of the lowest indices. Warm-up, a step of the schedule, clipping, momentum and weight decay
(none for norms) act within the run. Rates of the schedule are sums of powers of two, which float32 holds.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import PartitionSpec as P
from torch import nn

from mask_rcnn_jax.models import Variables, loss_terms
from mask_rcnn_jax.sharding import DATA_AXIS, data_mesh
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training import ExperimentConfig, ScheduleConfig, SGDConfig, StepDecay
from mask_rcnn_jax.training.hyperparameters import hyperparameters
from mask_rcnn_jax.training.step import apply_gradients, init_state
from tests.conformance import training
from tests.conformance.reference import lowest_indices
from tests.conformance.rows import Row, relative_norms, relative_values
from tests.conformance.sources import case, imported, leaves

# Steps by model. Statistics of three small images make rounding twice as large at each step: after 24 the samples part.
STEPS = {
    "torchvision maskrcnn v1, narrow": 30,
    "torchvision maskrcnn v2, narrow": 10,
    "torchvision keypointrcnn v1, narrow": 30,
}
BOUND = 1e-9
SCHEDULE = ScheduleConfig(
    learning_rate=2**-8, warmup_steps=8, warmup_factor=2**-3, decay=StepDecay(milestones=(20,), factor=0.5)
)
OPTIMIZER = SGDConfig(momentum=0.9, weight_decay=2**-10, weight_decay_norm=0.0, clip_norm=4.0)


@dataclass(frozen=True)
class Run:
    """What a run leaves, in this project's names."""

    losses: list[dict[str, float]]  # of each step
    gradient_norms: list[float]  # of each step, before clipping
    tensors: dict[str, np.ndarray]  # parameters and buffers after the last step


def rows(name: str) -> list[Row]:
    ours, reference = ours_of(name), reference_of(name)
    stage = f"{STEPS[name]} steps, float64"
    losses = max(relative_values(a, b) for a, b in zip(ours.losses, reference.losses, strict=True))
    norms = max(abs(a - b) / b for a, b in zip(ours.gradient_norms, reference.gradient_norms, strict=True))
    tensors = max(relative_norms(ours.tensors, reference.tensors).values())
    return [
        Row(name, stage, "losses, worst step", losses, BOUND, "relative"),
        Row(name, stage, "gradient norm, worst step", norms, BOUND, "relative"),
        Row(name, stage, "tensors at the end, worst", tensors, BOUND, "of the norm"),
    ]


def reference_of(name: str) -> Run:
    """torchvision's losses with PyTorch's SGD. Of its clipping, the 1e-6 that it adds to the norm is left out."""
    inputs = training.inputs_of(name)
    model = copy.deepcopy(case(name).model).double().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(_groups(model), lr=SCHEDULE.learning_rate, momentum=OPTIMIZER.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor)
    losses, norms = [], []
    for _ in range(STEPS[name]):
        with lowest_indices():
            found = training.reference_losses(model, inputs, torch.float64)
        optimizer.zero_grad()
        sum(found.values()).backward()
        norm = torch.linalg.vector_norm(torch.stack([parameter.grad.norm() for parameter in parameters]))
        for parameter in parameters:
            parameter.grad.mul_(min(1.0, OPTIMIZER.clip_norm / norm.item()))
        optimizer.step()
        schedule.step()
        losses.append({training.LOSSES[loss]: value.item() for loss, value in found.items()})
        norms.append(norm.item())
    with jax.enable_x64(True):
        variables = imported(replace(case(name).config, dtype="float64"), model)
    return Run(losses, norms, _tensors(variables))


def ours_of(name: str) -> Run:
    source, inputs = case(name), training.inputs_of(name)
    with jax.enable_x64(True):
        model = replace(source.config, dtype="float64")
        config = ExperimentConfig(model=model, optimizer=OPTIMIZER, schedule=SCHEDULE, steps=STEPS[name])
        batch = training.training_batch(model, inputs)
        state = init_state(config, jax.tree.map(lambda x: jnp.asarray(x, "float64"), source.variables))
        step = _step(config)
        losses, norms = [], []
        for _ in range(STEPS[name]):
            state, measures = step(state, batch)
            losses.append({key: float(measures[key]) for key in training.LOSSES.values() if key in measures})
            norms.append(float(measures["gradient_norm"]))
        return Run(losses, norms, _tensors(state.variables))


def _step(config: ExperimentConfig) -> Any:
    """The step of `training.step` on one device, with candidates of the lowest indices for random ones."""

    def step(state: Any, batch: Batch) -> Any:
        def loss_of(params: Any) -> Any:
            terms, buffers = loss_terms(config.model, Variables(params, state.variables.buffers), batch, None)
            values = {key: term.value for key, term in jax.lax.psum(terms, DATA_AXIS).items() if "loss/" in key}
            return sum(values.values()), (values, buffers)

        (loss, (values, buffers)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.variables.params)
        given = hyperparameters(config, state.step)
        state, measures = apply_gradients(given, state, loss, gradients, buffers)
        return state, measures | values

    mesh = data_mesh(jax.devices()[:1])
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=P()))


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters, those of norms apart."""
    of_norms = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [x for x in trained if x not in of_norms], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [x for x in trained if x in of_norms], "weight_decay": OPTIMIZER.weight_decay_norm},
    ]


def _factor(step: int) -> float:
    """Of the learning rate, as Detectron2's WarmupMultiStepLR has it."""
    (milestone,) = SCHEDULE.decay.milestones
    progress = min(step / SCHEDULE.warmup_steps, 1.0)
    return (SCHEDULE.warmup_factor * (1 - progress) + progress) * math.pow(SCHEDULE.decay.factor, step >= milestone)


def _tensors(variables: Variables) -> dict[str, np.ndarray]:
    return dict(_named("params", variables.params)) | dict(_named("buffers", variables.buffers))


def _named(kind: str, tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in leaves(tree).items():
        yield f"{kind}/{name}", array
