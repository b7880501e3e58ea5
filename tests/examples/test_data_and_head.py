"""The examples of data and of a head, as a stranger runs them: outside the package, on little."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.export.runtime import load
from mask_rcnn_jax.inference import Predictor, load_model
from mask_rcnn_jax.inference.augmented import AugmentationConfig, AugmentedPredictor
from tests.examples.small import DATA, HEAD, SMALL


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data of its own with a head of its own, which learns from their masks."""
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        (folder / "cells" / split).mkdir(parents=True)
        for number in range(count):
            pixels, mask = rng.integers(0, 80, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
            for instance, x in enumerate((4, 34), 1):
                mask[10 : 30 + number, x : x + 20], pixels[10 : 30 + number, x : x + 20] = instance, 200
            Image.fromarray(pixels).save(folder / "cells" / split / f"{number}.jpg")
            Image.fromarray(mask).save(folder / "cells" / split / f"{number}.png")
    settings = [f"data.source.root={folder / 'cells'}", *SMALL.split()]
    settings += [f"model.backbone.bottom_up.{setting}" for setting in ("depth=10", "width=8", "out_features=res2,res3")]
    settings += ["model.heads=FillConfig", "model.heads[0].pooler.features=p2,p3", "model.heads[0].channels=8"]
    arguments = ["train", "--config", str(DATA), "--plugin", str(HEAD), "--workdir", str(folder / "run")]
    assert main([*arguments, "--set", *settings, "model.remat=fill"]) == 0
    assert main(["eval", "--workdir", str(folder / "run"), "--pictures", "1"]) == 0
    return folder / "run"


def test_data_of_ones_own_are_trained_and_evaluated_on(cells, tmp_path, capsys):
    """In processes that load them, too, which do not know their class."""
    stored = json.loads((cells / "config.json").read_text())["data"]
    assert stored["num_workers"] == 2
    assert stored["source"]["type"] == "NumberedMasks"
    assert list((cells / "eval" / "pictures").iterdir())
    data, run = shutil.copytree(cells.parent / "cells", tmp_path / "cells"), shutil.copytree(cells, tmp_path / "run")
    (data / "val" / "1.png").unlink()
    evaluation = ["eval", "--workdir", str(run), "--pictures", "0"]
    assert main([*evaluation, "--set", f"data.source.root={data}"]) == 2
    assert "has no mask; put it at" in capsys.readouterr().err
    # As a process sees it that does not know the class: predicting needs no source.
    for file in (run / "config.json", run / "checkpoints" / "2" / "metadata" / "metadata"):
        file.write_text(file.read_text().replace("NumberedMasks", "OfNobody"))
    assert len(Predictor(load_model(run), score_threshold=0.0)(np.zeros((64, 64, 3), np.uint8))) > 0
    assert main(evaluation) == 2
    assert "data.source.type: expected CocoConfig or " in capsys.readouterr().err


def test_a_head_of_ones_own_says_what_it_finds(cells, tmp_path):
    """In results, in Python, averaged over versions of the image, and in an exported file."""
    lines = [json.loads(line) for line in (cells / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss/fill"]) for line in lines if "loss" in line)
    (stored,) = json.loads((cells / "config.json").read_text())["model"]["heads"]
    assert (stored["type"], stored["channels"]) == ("FillConfig", 8)
    results = json.loads((cells / "eval" / "detections.json").read_text())
    assert results
    assert all(0 < result["fill"] < 1 for result in results)
    model, image, out = load_model(cells), np.full((40, 60, 3), 127, np.uint8), tmp_path / "model.stablehlo"
    found = Predictor(model)(image)
    assert found.extras["fill"].shape == (len(found),) > (0,)
    averaged = AugmentedPredictor(model, AugmentationConfig(scales=(1.0,)), score_threshold=0.0)(image)
    assert np.all((averaged.extras["fill"] > 0) & (averaged.extras["fill"] < 1))
    assert main(["export", "--checkpoint", str(cells), "--out", str(out), "--input", "40", "60"]) == 0
    outputs = load(out).detect([image])[0]
    np.testing.assert_allclose(outputs["fill"], found.extras["fill"], atol=1e-5)
