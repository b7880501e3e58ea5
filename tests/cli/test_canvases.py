"""`mask-rcnn canvases`: what it says is worth what it says, and can be set as it is printed."""

import re
import shlex

import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.cli.runs.experiment import load_experiment
from mask_rcnn_jax.config import override
from tests.data.coco_files import annotation, write_dataset

SIZES = [(12, 16)] * 6 + [(16, 12)] * 2 + [(12, 24)] * 3 + [(12, 12)]


@pytest.fixture
def config(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(SIZES)]
    annotations = [annotation(id=i, image_id=i) for i in range(len(SIZES))]
    for split in ("train", "val"):
        write_dataset(tmp_path / split, annotations, images, split=split)
    (tmp_path / "train" / "val").symlink_to(tmp_path / "val" / "val")
    (tmp_path / "train" / "annotations" / "instances_val.json").symlink_to(
        tmp_path / "val" / "annotations" / "instances_val.json"
    )
    file = tmp_path / "mine.py"
    file.write_text(
        "from mask_rcnn_jax.data import CocoConfig, DataConfig\n"
        "from mask_rcnn_jax.training import ExperimentConfig\n"
        "def get_config():\n"
        f"    data = DataConfig(CocoConfig({str(tmp_path / 'train')!r}), short_side=(96, 192), short_side_eval=192,\n"
        "                      max_side=384, canvas=(192, 384))\n"
        "    return ExperimentConfig(data=data)\n"
    )
    return file


def chosen(config, capsys, *arguments):
    assert main(["canvases", "--config", str(config), *arguments]) == 0
    train, val, settings = capsys.readouterr().out.splitlines()
    words = shlex.split(settings)
    assert words[0] == "--set"
    return train, val, words[1:]


def test_what_it_prints_can_be_set_and_pads_less(config, capsys) -> None:
    train, val, settings = chosen(config, capsys)
    assert val.startswith("val: 12 images at a short side of 192: 1.000 pixels computed for each of theirs, ")
    # 12 images on 192 x 384 pixels, of which 8 have 192 x 256, 3 have all and one 192 x 192.
    assert val.endswith(f"with those that are set {12 / (8 * 2 / 3 + 3 + 0.5):.3f}")
    assert train.startswith("train: 12 images at a short side of 96 or 192: 1.0")
    data = override(load_experiment(config), settings).data
    assert (data.canvas_eval, data.smaller_canvases_eval) == ((192, 384), ((192, 192), (192, 256)))
    assert data.canvas == (192, 384)
    assert len(data.smaller_canvases) == 3
    again, _, same = chosen(config, capsys, "--set", *settings)
    assert same == settings
    assert again.split(", with")[0] == train.split(", with")[0]
    now, as_set = re.findall(r"\d\.\d{3}", again)
    assert now == as_set < re.findall(r"\d\.\d{3}", train)[1]


def test_one_canvas_and_those_of_models_with_other_strides(config, capsys) -> None:
    _, _, settings = chosen(config, capsys, "--count", "1")
    assert settings == [
        "data.canvas=(192,384)",
        "data.smaller_canvases=()",
        "data.canvas_eval=(192,384)",
        "data.smaller_canvases_eval=()",
    ]
    train, _, settings = chosen(
        config, capsys, "--set", "data.large_scale_jitter=LargeScaleJitterConfig", "data.canvas=96,192"
    )
    assert train == "train: large_scale_jitter fills one canvas, (96, 192)"
    assert settings == ["data.canvas_eval=(192,384)", "data.smaller_canvases_eval=((192,192),(192,256))"]


def test_mistakes_are_one_sentence(config, capsys) -> None:
    assert main(["canvases", "--config", str(config), "--set", "data.source.root=nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: Data directory nowhere does not exist")
    with pytest.raises(SystemExit):
        main(["canvases", "--config", str(config), "--count", "0"])
    assert "--count: must be at least 1 and at most 16, not 0" in capsys.readouterr().err
