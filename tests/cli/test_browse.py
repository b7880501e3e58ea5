import re

import pytest

from mask_rcnn_jax.cli.main import main
from tests.data.coco_files import annotation, write_dataset
from tests.data.test_augment import scenes


def test_browse_writes_pictures(tmp_path, capsys) -> None:
    dataset = scenes(tmp_path / "data")
    root = str(dataset.annotation_file.parents[1])
    settings = ["data.canvas=96,96", "data.large_scale_jitter=LargeScaleJitterConfig", "data.copy_paste=1"]
    out = tmp_path / "out"
    assert main(["browse", "--data", root, "--out", str(out), "--num", "3", "--set", *settings]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    assert len(list(out.glob("0*.png"))) == 3
    assert (out / "contact_sheet.png").is_file()

    config = tmp_path / "experiment.py"
    config.write_text(
        "from mask_rcnn_jax.data import CocoConfig, DataConfig\n"
        "from mask_rcnn_jax.training import ExperimentConfig\n"
        f"def get_config():\n    data = DataConfig(CocoConfig({root!r}), short_side=(40,), canvas=(64, 96))\n"
        "    return ExperimentConfig(data=data)\n"
    )
    assert main(["browse", "--config", str(config), "--out", str(tmp_path / "other"), "--num", "2"]) == 0
    assert len(list((tmp_path / "other").glob("0*.png"))) == 2


def test_ids_that_are_text_are_one_sentence(tmp_path, capsys) -> None:
    write_dataset(tmp_path / "data", [annotation(id="5f3a-uuid")])
    assert main(["browse", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2
    assert re.match(
        r"error: Annotation 5f3a-uuid \(annotations\[0\]\) in .* which is not a whole number; number the entries",
        capsys.readouterr().err,
    )


def test_mistakes_are_one_sentence(tmp_path, capsys) -> None:
    assert main(["browse", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert re.match(r"error: Data directory .*none does not exist", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["browse", "--out", str(tmp_path / "out")])
