"""The devices that programs can be planned for, and their compilers, which run without them.

Figures are those of one device as jax counts them: a chip, of TPU7x half of one. Sources: Google's pages on TPU v5e,
v5p, v6e and TPU7x (https://docs.cloud.google.com/tpu/docs/v5e and so on) and NVIDIA's data sheets of the H100 and the
H200 (SXM). The memory of TPUs is what libtpu 0.0.52 leaves a program of theirs.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.experimental import topologies

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.planning.products import Precision

GIB = 2**30
_GPUS_OF_A_MACHINE = 8


@dataclass(frozen=True)
class Hardware:
    """A kind of device."""

    name: str
    title: str
    platform: Literal["tpu", "gpu"]
    memory: float  # bytes that a program can have
    bandwidth: float  # bytes/s between memory and chip
    peaks: Mapping[Precision, float]  # multiplications and additions a second
    link: float  # bytes/s that leave a device for others
    example: str  # of what `--device` takes


def _tpu(name: str, title: str, gib: float, gbps: float, tflops: float, link: float, example: str) -> Hardware:
    """`link` is what Google says, in both directions. A product of float32 in full is six of bfloat16."""
    peaks: dict[Precision, float] = {"half": tflops * 1e12, "single": tflops * 1e12, "exact": tflops * 1e12 / 6}
    return Hardware(name, title, "tpu", gib * GIB, gbps * 1e9, peaks, link * 1e9 / 2, example)


# Dense, of tensor cores in bfloat16 and TF32, and of the others. NVLink of the fourth generation, in one direction.
_HOPPER: dict[Precision, float] = {"half": 989e12, "single": 494e12, "exact": 67e12}
# jax takes three quarters of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75

HARDWARE = {
    each.name: each
    for each in (
        _tpu("v5e", "TPU v5e", 15.75, 819, 197, 400, "v5e:2x2"),
        _tpu("v5p", "TPU v5p", 95.73, 2765, 459, 1200, "v5p:2x2x1"),
        _tpu("v6e", "TPU v6e", 31.24, 1638, 918, 800, "v6e:2x2"),
        _tpu("tpu7x", "TPU7x, half a chip", 94.74, 7380 / 2, 2307 / 2, 1200 / 2, "tpu7x:2x2x1"),
        Hardware("h100", "NVIDIA H100 SXM", "gpu", GPU_SHARE * 80e9, 3.35e12, _HOPPER, 450e9, "h100:8"),
        Hardware("h200", "NVIDIA H200 SXM", "gpu", GPU_SHARE * 141e9, 4.8e12, _HOPPER, 450e9, "h200:8"),
    )
}


@dataclass(frozen=True)
class Target:
    """Devices that are not there: `topology` is 2x2 or 4x4x4 of TPUs, and how many of GPUs."""

    hardware: Hardware
    topology: str

    def __str__(self) -> str:
        return f"{self.hardware.name}:{self.topology}"

    def require_compiler(self) -> None:
        """Raise UserError where the compiler is not installed."""
        if self.hardware.platform == "tpu":
            require("plan-tpu", f"--device {self}")
        else:
            require("plan-gpu", f"--device {self}")

    def devices(self) -> Sequence[Any]:
        """Describe the devices to jax. Raises UserError for a topology that the compiler does not know."""
        _say_that_no_device_is_there()
        try:
            if self.hardware.platform == "gpu":
                described: Any = topologies.get_topology_desc(
                    self.hardware.name, "cuda", target_config=_config(self.hardware), topology=f"1x1x{self.topology}"
                )
            else:
                described = topologies.get_topology_desc(platform="tpu", topology_name=str(self))
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"--device {self} is nothing that its compiler describes ({reason}); give one such as"
                f" {self.hardware.example}"
            ) from None
        return described.devices

    def compiler_options(self) -> dict[str, Any]:
        """Return what to ask the compiler for: without a GPU it can time no alternatives."""
        return {"xla_gpu_autotune_level": 0} if self.hardware.platform == "gpu" else {}


def target(text: str) -> Target:
    """Return the devices that `--device` names. Raises UserError where there are no such."""
    name, _, topology = text.lower().partition(":")
    if name not in HARDWARE:
        near = difflib.get_close_matches(name, HARDWARE, n=3, cutoff=0.5)
        examples = ", ".join(HARDWARE[each].example for each in near or HARDWARE)
        raise UserError(f"--device {text}: unknown; {'the nearest are' if near else 'there are'} {examples}")
    hardware = HARDWARE[name]
    if hardware.platform == "gpu":
        topology = topology or "1"
        if not topology.isdigit() or not 1 <= int(topology) <= _GPUS_OF_A_MACHINE:
            raise UserError(f"--device {text}: give {name}:1 to {name}:{_GPUS_OF_A_MACHINE}, the GPUs of one machine")
        return Target(hardware, str(int(topology)))
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", topology):
        raise UserError(f"--device {text}: give the chips in each direction, such as {hardware.example}")
    return Target(hardware, topology)


# libtpu is to ask no server which TPUs the machine has (any will do), and to keep its complaints to itself.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}


def _config(gpu: Hardware) -> str:
    return _HOPPER_CONFIG.format(title=gpu.title, bandwidth=int(gpu.bandwidth), memory=int(gpu.memory / GPU_SHARE))


def _say_that_no_device_is_there() -> None:
    """Keep libraries from looking for the devices whose compilers they bring."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


# Facts that the compiler asks for of a GPU of the Hopper generation, as XLA's own descriptions have them.
_HOPPER_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{title}"
"""
