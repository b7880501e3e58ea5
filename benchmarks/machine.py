"""What a benchmark ran on."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def machine(*packages: str) -> dict[str, Any]:
    """The processor, what else runs on it, and the versions of Python and of the `packages` that do the work."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def sentence(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
