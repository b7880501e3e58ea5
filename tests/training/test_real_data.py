"""Learning on real images, by the commands that a user types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_nuclei_are_learnt_in_200_steps(shared, tmp_path):
    """A sixth of the steps. The bound is what torchvision's Mask R-CNN, with the same backbone and start, reached
    after 163 steps of its own recipe: .247 mask AP."""
    command = [sys.executable, "train.py", "--config", "configs/nuclei_r18_fpn.py", "--workdir", str(tmp_path / "run")]
    settings = [
        f"data.source.root={shared / 'data' / 'nuclei'}",
        f"pretrained={shared / 'weights' / 'resnet18_imagenet_partial.npz'}",
        "steps=200",
    ]
    done = subprocess.run(
        [*command, "--set", *settings],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 200
    assert last["segm/AP"] > 0.247
