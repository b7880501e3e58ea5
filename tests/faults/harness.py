"""Real training processes that are killed, and what is left of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.training import ExperimentConfig

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds that anything may take on a busy machine


def write_settings(config: ExperimentConfig, folder: Path) -> Path:
    """A file for `--config` that says `config`."""
    (folder / "settings.json").write_text(json.dumps(to_json(config)))
    settings = folder / "settings.py"
    settings.write_text(
        "import json\nfrom pathlib import Path\n"
        "from mask_rcnn_jax.config import from_json\nfrom mask_rcnn_jax.training import ExperimentConfig\n\n\n"
        "def get_config():\n"
        "    return from_json(ExperimentConfig, json.loads(Path(__file__).with_suffix('.json').read_text()))\n"
    )
    return settings


class Run:
    """`train.py` in a process of its own, on one device; its output goes to a file beside the workdir."""

    def __init__(self, settings: Path, workdir: Path, before: Sequence[str] = (), **environment: str):
        self.workdir, self._log = workdir, workdir.with_suffix(".log")
        command = [*before, sys.executable, "train.py", "--config", str(settings), "--workdir", str(workdir)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ended(self) -> bool:
        return self.process.poll() is not None

    def until(self, happened: Callable[[], bool]) -> bool:
        """Waits; whether it happened before the process ended."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if self.ended():
                return False
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        return True

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status; minus the signal's number where one ended the process."""
        return self.process.wait(PATIENCE)

    def output(self) -> str:
        return self._log.read_text()


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the speeds, which are never the same. A run that was cut off after its last
    evaluation and before its end evaluates once more.
    """
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [{name: value for name, value in line.items() if not is_speed(name)} for line in lines]
    return found[:-1] if found[-2:-1] == found[-1:] else found


def is_speed(name: str) -> bool:
    return name in ("images_per_second", "data_wait") or name.startswith(("seconds", "time", "memory"))


def finished_steps(workdir: Path) -> list[int]:
    """The checkpoints that are whole, as their names tell."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def is_writing_checkpoint(workdir: Path, since: float) -> bool:
    """Whether a checkpoint was begun after the time `since` and is not finished; a kill leaves what it cut off."""
    for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"):
        try:
            if path.stat().st_ctime > since:
                return True
        except FileNotFoundError:
            continue  # finished
    return False


def arrays(workdir: Path, step: int) -> dict[str, Any]:
    """All arrays of a checkpoint by item and name: parameters, buffers, and the optimizer's state."""
    folder, found = workdir / "checkpoints" / str(step), {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("model", "optimizer"):
            tree = checkpointer.restore((folder / item).resolve())
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            found |= {item + jax.tree_util.keystr(path): jax.device_get(leaf) for path, leaf in leaves}
    return found


def assert_same_end(one: Path, other: Path, step: int) -> None:
    """The two runs have the same parameters, optimizer and metrics, bit for bit."""
    first, second = arrays(one, step), arrays(other, step)
    assert first.keys() == second.keys()
    assert len(first) > 60  # 32 parameters of the smallest model, and their momenta
    different = [name for name, value in first.items() if value.tobytes() != second[name].tobytes()]
    assert not different, different[:5]
    assert metrics(one) == metrics(other)
