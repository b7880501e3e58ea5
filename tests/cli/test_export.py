"""`mask-rcnn export`: a checkpoint becomes a file that finds things, and mistakes are named before any work."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.cli.export import export_settings
from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.disk.output_folder import RECORD
from mask_rcnn_jax.export.runtime import load
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata
from mask_rcnn_jax.training.step import init_state
from tests.tiny import tiny_experiment

NAMES = tuple("abcdef")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_experiment(Path("unused"))
    with Checkpoints(workdir, config, Metadata(NAMES, (1, 2, 3, 4, 5, 6), licence="free")) as checkpoints:
        checkpoints.save(init_state(config))
    return workdir


def test_a_checkpoint_becomes_onnx(checkpoint, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    arguments = ["--checkpoint", checkpoint, "--out", out, "--input", 40, 90, "--paste-masks"]
    assert main(["export", *map(str, arguments)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: " in said
    assert "licence of the weights, which the file states too: free\n" in said
    model = load(out)
    assert model.metadata["licence"] == "free"
    assert (model.class_names, model.input_size, model.batch) == (NAMES, (40, 90), 1)
    (found,) = model.detect([np.zeros((30, 20, 3), np.uint8)])
    assert found["masks"].shape == (len(found["boxes"]), 30, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, out.name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "model.pb"], "must end in .stablehlo or .onnx"),
        (["--out", "absent/model.onnx"], "the folder absent does not exist"),
        (["--out", "folder.onnx"], "folder.onnx is a folder"),
        (["--out", "model.onnx", "--batch", "any"], "--batch any: an ONNX file takes a fixed number"),
        (["--out", "model.stablehlo", "--batch", "0"], "--batch 0: give a positive number"),
        (["--out", "model.stablehlo"], "run"),
    ],
)
def test_mistakes_are_named_before_any_work(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    assert main(["export", "--checkpoint", "absent_run", *options]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize(
    ("option", "said"),
    [("--canvas=60 64", "--canvas 60 64: give positive multiples of 32"), ("--input=0 9", "--input 0 9")],
)
def test_sizes_that_cannot_be_are_named(option, said, checkpoint, tmp_path, capsys):
    name, _, sizes = option.partition("=")
    out = str(tmp_path / "model.stablehlo")
    assert main(["export", "--checkpoint", str(checkpoint), "--out", out, name, *sizes.split()]) == 2
    assert said in capsys.readouterr().err


def test_onnx_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "--checkpoint", "absent", "--out", str(tmp_path / "model.onnx")]) == 2
    assert "pip install 'mask-rcnn-jax[onnx]'" in capsys.readouterr().err


def test_sizes_are_those_of_evaluation_unless_given():
    data = DataConfig(
        canvas=(832, 1344), canvas_eval=(512, 768), short_side_eval=480, max_side=700, resize="torchvision"
    )
    settings = export_settings(data)
    assert settings.input_size == settings.preprocessing.canvas == (512, 768)
    preprocessing = settings.preprocessing
    assert (preprocessing.short_side, preprocessing.max_side, preprocessing.convention) == (480, 700, "torchvision")
    assert export_settings(data, (1080, 1920), (832, 1344), 4).input_size == (1080, 1920)
