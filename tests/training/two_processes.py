"""Two real processes with four devices each, joined over loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
from pathlib import Path

from tests.tiny import {model}, tiny_experiment


def get_config():
    return tiny_experiment(
        Path({root!r}), model={model}(), steps={steps}, eval_every=2, checkpoint_every=2
    )
"""
EXACT = ("loss", "gradient_norm", "rpn/foreground_anchors", "box/foreground_rois", "bbox/AP", "segm/AP")


def start(command: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """The script in two processes with four virtual devices each; each one's output in a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    started = []
    for index in range(2):
        joined = ["--coordinator", address, "--processes", "2", "--process", str(index)]
        with (folder / f"output{index}.txt").open("w") as output:
            arguments = [sys.executable, "-m", "tests.training.keeping", *command, *joined]
            started.append(
                subprocess.Popen(
                    arguments, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
                )
            )
    return started


def finish(started: list[subprocess.Popen[str]], folder: Path) -> list[int]:
    try:
        return [process.wait(timeout=400) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
        pytest.fail("\n".join(path.read_text() for path in folder.glob("output*.txt")))


def train_options(folder: Path, run: str, model: str = "one_map_model", steps: int = 2) -> list[str]:
    """Of `train`: a run in `folder` of a model of `tests.tiny`."""
    config = folder / f"{run}.py"
    config.write_text(CONFIG.format(root=str(folder), model=model, steps=steps))
    return ["--config", str(config), "--workdir", str(folder / run)]


def metrics(workdir: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in ("step", *EXACT) if name in line} for line in lines]
