"""The machine of a benchmark, its report, and work in a process of its own."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

# For glibc, in two programs that take turns: where the system takes freed memory back, each pays for what the other
# returned.
KEEPS_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


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


def write(file: Path, about: dict[str, Any], rows: Any) -> None:
    """The report as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")


def in_a_process(module: str, *arguments: object, **environment: str) -> Any:
    """Run `python -m module` and return the JSON in its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
