"""The compilers of a TPU and a GPU, which need neither, on a small model: what they make is accounted for."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mask_rcnn_jax.models import abstract
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = """
from pathlib import Path
from tests.tiny import tiny_experiment

def get_config():
    return tiny_experiment(Path("shapes"))
"""


def plan(folder: Path, package: str, *options: str) -> dict:
    """The JSON of the command, in a process of its own: the compilers look at their environment as they are loaded."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which the extra plan-tpu or plan-gpu brings")
    (folder / "tiny.py").write_text(CONFIG)
    run = "from mask_rcnn_jax.cli.main import entry; entry()"
    command = [sys.executable, "-c", run, "plan", "--config", str(folder / "tiny.py"), "--json", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_training(program: dict, devices: int) -> None:
    assert program["compiles"]
    assert program["fits"]
    assert program["collectives"] >= 2  # of the loss terms and of the gradients
    stages = {(stage["stage"], stage["backward"]): stage for stage in program["stages"]}
    assert {"res2", "res3", "p2", "rpn_head", "roi_align", "box_head", "mask_head"} <= {
        name for name, backward in stages if backward
    }
    assert ("optimizer", False) in stages
    # Two convolutions with gradients of their input and kernel each.
    assert stages["res2", True]["operations"] == 2 * stages["res2", False]["operations"]
    # The gradients go round the ring twice, with some numbers beside them.
    gradients = 4 * sum(x.size for x in jax.tree.leaves(abstract(tiny_model()).params))
    assert program["sent"] / (2 * (devices - 1) / devices) == pytest.approx(gradients, rel=0.01)


def forward_of_res2(program: dict) -> float:
    return next(
        stage["operations"] for stage in program["stages"] if stage["stage"] == "res2" and not stage["backward"]
    )


# Of an image: two convolutions of 3 x 3 cells and 8 channels on 16 x 16 cells, whose last ones meet padding.
RES2 = 2 * 2 * (16 * 3 - 2) ** 2 * 8 * 8


def test_a_training_step_for_a_gpu(tmp_path: Path) -> None:
    (program,) = plan(tmp_path, "jax_cuda13_plugin", "--device", "h200:2", "--batch", "8")["programs"]
    check_training(program, devices=2)
    assert program["images_at_a_time"] == 4
    assert program["host_waits"] > 0
    assert forward_of_res2(program) == 4 * RES2


def test_a_training_step_for_a_tpu(tmp_path: Path) -> None:
    (program,) = plan(tmp_path, "libtpu", "--device", "v5e:2x2", "--batch", "8")["programs"]
    check_training(program, devices=4)
    assert program["images_at_a_time"] == 2
    assert program["host_waits"] == 0
    assert 2 * RES2 <= forward_of_res2(program) < 4 * RES2  # with what it pads for its tiles
