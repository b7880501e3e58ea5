"""Compiling a program for devices that are only described, and what the compiler says of its time and memory."""

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import abstract
from mask_rcnn_jax.planning.accounting import Account, account
from mask_rcnn_jax.planning.devices import GIB, Target
from mask_rcnn_jax.planning.programs import What, abstract_state, lowered
from mask_rcnn_jax.sharding import data_mesh
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import make_mesh

_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# What libtpu says of a program that the device's memory does not hold, in two ways.
_NEEDED = re.compile(r"(?:Used |required for [\w ]+\()([\d.]+)([KMGT])\b")


@dataclass(frozen=True)
class Memory:
    """Bytes that a program needs on a device; the outputs that take the place of inputs are not among `outputs`."""

    inputs: float
    outputs: float
    temporaries: float
    code: float

    @property
    def total(self) -> float:
        """The bytes of all of these."""
        return self.inputs + self.outputs + self.temporaries + self.code


@dataclass(frozen=True)
class Plan:
    """A program of `batch` images on all devices, and what became of it."""

    target: Target
    what: What
    batch: int
    size: tuple[int, int]  # (height, width) of an image
    devices: int
    parts: int  # of the batch, one after the other
    remat: tuple[str, ...]
    fixed: float  # bytes on a device that do not depend on the images: parameters, and in training what goes with them
    traced_s: float
    compiled_s: float
    compiled_cpu_s: float
    memory: Memory | None = None  # None where the compiler refused it
    needed: float | None = None  # bytes on a device, as far as they are known
    account: Account | None = None
    failure: str = ""  # the compiler's reason

    @property
    def images(self) -> float:
        """Images that a device works on at a time."""
        return self.batch / self.devices / self.parts

    @property
    def fits(self) -> bool:
        """True where the devices' memory holds the program."""
        return self.memory is not None and self.memory.total <= self.target.hardware.memory


def shared_mesh(config: ExperimentConfig, devices: Sequence[Any], what: What) -> Mesh:
    """Return the mesh of devices that share the batch. Raises UserError where they cannot share it equally."""
    if what == "train":
        return make_mesh(config, devices)
    if config.batch_size % len(devices):
        raise UserError(
            f"{config.batch_size} images cannot be shared equally by {len(devices)} devices; give a multiple of"
            f" {len(devices)}"
        )
    return data_mesh(devices)


def compiled_plan(config: ExperimentConfig, target: Target, mesh: Mesh, what: What, size: tuple[int, int]) -> Plan:
    """Compile a program, and say what it costs. One that the compiler refuses has its reason."""
    began = time.perf_counter()
    program = lowered(config, mesh, what, size)
    traced = time.perf_counter()
    cpu = _cpu_seconds()
    failure, compiled = "", None
    try:
        compiled = program.compile(compiler_options=target.compiler_options())
    except jax.errors.JaxRuntimeError as error:
        failure = str(error)
    plan = Plan(
        target=target,
        what=what,
        batch=config.batch_size,
        size=size,
        devices=mesh.size,
        parts=config.accumulation_steps if what == "train" else 1,
        remat=config.model.remat if what == "train" else (),
        fixed=_fixed(config, what),
        traced_s=traced - began,
        compiled_s=time.perf_counter() - traced,
        compiled_cpu_s=_cpu_seconds() - cpu,
    )
    if compiled is None:
        return replace(plan, failure=failure.strip().splitlines()[0], needed=needed_of(failure))
    memory = _memory(compiled.memory_analysis())
    return replace(plan, memory=memory, needed=memory.total, account=account(compiled.as_text() or "", mesh.size))


def needed_of(failure: str) -> float | None:
    """Return the bytes that a program would need, where the compiler refused it for want of memory."""
    found = _NEEDED.search(failure)
    return float(found[1]) * _UNITS[found[2]] if found and "memory" in failure.lower() else None


def _memory(analysis: Any) -> Memory:
    return Memory(
        inputs=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def _fixed(config: ExperimentConfig, what: What) -> float:
    """Bytes of the variables; in training of the optimizer's state and the gradients as well."""
    if what == "detect":
        return _bytes(abstract(config.model))
    state = abstract_state(config)
    return _bytes(state) + _bytes(state.variables.params)


def _bytes(tree: Any) -> float:
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
