"""`eval.py` on a checkpoint of an untrained model."""

import json
from pathlib import Path

import jax
import pytest

from mask_rcnn_jax.cli.eval import main
from mask_rcnn_jax.data import DataConfig, ShapesConfig
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.models import init
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata
from mask_rcnn_jax.training.runs.workdir import claim
from mask_rcnn_jax.training.step import init_state
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    source = ShapesConfig(root=str(folder / "shapes"), num_train=1, num_val=3, image_size=64, max_shape_size=40)
    source.prepare()
    dataset = source.load("val")
    base = tiny_model()
    model = type(base)(**{**vars(base), "num_classes": len(dataset.class_names)})
    data = DataConfig(source=source, short_side=(64,), short_side_eval=64, max_side=64, canvas=(64, 64))
    config = ExperimentConfig(
        model=model, data=data, evaluation=EvaluationConfig(images_per_device=1), steps=1, batch_size=1
    )
    claim(folder, config)
    state = init_state(config, init(model, jax.random.key(0)))
    with Checkpoints(folder, config, Metadata(dataset.class_names, dataset.categories)) as checkpoints:
        checkpoints.save(state)
    return folder


def test_writes_metrics_detections_and_pictures(workdir, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    # With a threshold this low, a model that knows nothing finds something.
    settings = ["--set", "model.box_head.score_threshold=0.01", "evaluation.max_detections=1,5"]
    assert main(["--workdir", str(workdir), "--out", str(out), "--pictures", "2", *settings]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert 0 <= metrics["segm/AP"] < 0.5
    assert metrics["segm/AR5"] >= metrics["segm/AR1"]
    assert metrics["bbox/APl"] is None
    assert metrics["step"] == 0
    detections = json.loads((out / "detections.json").read_text())
    assert detections
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    pictures = sorted((out / "pictures").iterdir())
    assert len(pictures) == 2
    for path in (out / "metrics.json", out / "detections.json", *pictures):
        assert str(path) in printed
    assert "segm" in printed


def test_evaluates_averaged_weights_where_there_are_some(workdir, tmp_path, capsys) -> None:
    assert main(["--workdir", str(workdir), "--out", str(tmp_path), "--average"]) == 2
    assert "holds no average of the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.box_head.fc_chanels=8"], "fc_channels"),
        (["--set", "model.box_head.fc_channels=8"], "another model"),
        (["--set", "data.source=CocoConfig", "data.source.root=nowhere"], "nowhere"),
        (["--split", "test"], "instances_test.json"),
        (["--checkpoint", "12"], "12"),
        (["--checkpoint", "no/such/folder"], "no/such/folder"),
        (["--config", "absent.py"], "absent.py"),
    ],
)
def test_mistakes_are_named(workdir, tmp_path, capsys, arguments, message) -> None:
    assert main(["--workdir", str(workdir), "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_checkpoint_is_enough_and_nothing_is_written_into_it(workdir) -> None:
    checkpoint = workdir / "checkpoints" / "0"
    before = sorted(checkpoint.rglob("*"))
    assert main(["--checkpoint", str(checkpoint), "--pictures", "0"]) == 0
    assert json.loads((workdir / "eval" / "metrics.json").read_text())["step"] == 0
    assert sorted(checkpoint.rglob("*")) == before


@pytest.mark.parametrize("place", ["checkpoints/0", "checkpoints/0/eval", "checkpoints/eval"])
def test_results_among_checkpoints_are_refused(workdir, place, capsys) -> None:
    assert main(["--workdir", str(workdir), "--out", str(workdir / place)]) == 2
    assert f"error: --out {workdir / place} lies in {workdir}/checkpoints" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path, capsys) -> None:
    assert main(["--workdir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_other_categories_are_named(workdir, tmp_path, capsys) -> None:
    file = workdir / "shapes" / "annotations" / "instances_other.json"
    content = json.loads((workdir / "shapes" / "annotations" / "instances_val.json").read_text())
    content["categories"][0]["name"] = "blob"
    file.write_text(json.dumps(content))
    (workdir / "shapes" / "other").symlink_to(workdir / "shapes" / "val")
    assert main(["--workdir", str(workdir), "--split", "other", "--out", str(tmp_path)]) == 2
    assert "blob" in capsys.readouterr().err


def test_workdir_or_checkpoint_is_needed(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert "--workdir" in capsys.readouterr().err
