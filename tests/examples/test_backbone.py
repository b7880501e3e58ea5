"""The example of a backbone, as a stranger runs it: outside the package, on little."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.config import override
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Predictor, load_model
from mask_rcnn_jax.python_files import load_config_file
from tests.examples.small import BACKBONE, ROOT, SMALL


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the configuration, with its own backbone."""
    folder = tmp_path_factory.mktemp("custom")
    shapes = ["num_train=8", "num_val=2", "image_size=64", "max_shape_size=32"]
    settings = [f"data.source.{setting}" for setting in (f"root={folder / 'shapes'}", *shapes)]
    settings += [*SMALL.split(), "model.backbone.bottom_up.width=4", "model.backbone.bottom_up.depth=3"]
    arguments = ["train", "--config", str(BACKBONE), "--workdir", str(folder / "run"), "--set", *settings]
    assert main(arguments) == 0
    return folder / "run"


def test_a_backbone_of_ones_own_is_trained_and_predicts(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    stored = json.loads((trained / "config.json").read_text())["model"]["backbone"]["bottom_up"]
    assert stored == {"type": "PlainConfig", "width": 4, "depth": 3}
    model = load_model(trained)
    assert model.config.backbone.features["p2"].stride == 4
    found = Predictor(model, score_threshold=0.0)(np.full((40, 60, 3), 127, np.uint8))
    assert len(found) > 0


def test_its_file_is_named_to_processes_that_do_not_know_it(trained, tmp_path):
    """In another process: evaluated and exported with the file, and refused with a sentence without it."""
    code = (
        "import sys; from mask_rcnn_jax.cli.main import main\n"
        "run, plugin, out = sys.argv[1:]\n"
        "status = main(['eval', '--workdir', run])\n"
        "status = status, main(['eval', '--workdir', run, '--plugin', plugin, '--pictures', '0'])\n"
        "status = *status, main(['--plugin', plugin, 'export', '--checkpoint', run, '--out', out])\n"
        "print(status)"
    )
    out = tmp_path / "model.stablehlo"
    done = subprocess.run(
        [sys.executable, "-c", code, str(trained), str(BACKBONE), str(out)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "(2, 0, 0)", done.stderr
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert sentence.startswith(f"error: {trained / 'checkpoints' / '2'}: backbone.bottom_up.type: expected ")
    assert sentence.endswith("not 'PlainConfig'; a class of your own is known once its file is loaded: --plugin FILE")
    assert (trained / "eval" / "metrics.json").is_file()
    assert out.stat().st_size > 10_000


def test_a_canvas_that_the_backbone_cannot_take_is_refused():
    config = load_config_file(BACKBONE)
    key = "model.backbone.bottom_up.depth=6"
    assert override(config, [key]).model.backbone.size_divisor == 64
    with pytest.raises(
        UserError, match=r"data\.canvas \(96, 128\): model\.backbone takes sides that are multiples of 64"
    ):
        override(config, [key, "data.canvas=96,128"])
    with pytest.raises(UserError, match=r"data\.smaller_canvases_eval \(32, 64\): model\.backbone takes"):
        override(config, [key, "data.smaller_canvases_eval=(32,64)"])


def test_an_example_is_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 120, path
