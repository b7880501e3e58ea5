"""What `eval.py` writes and where, with an evaluation at hand: nothing here runs a model."""

from pathlib import Path

import pytest

from mask_rcnn_jax.cli import eval as command
from mask_rcnn_jax.data import CocoConfig, DataConfig, build_tfds
from mask_rcnn_jax.evaluation import EvaluationResult
from mask_rcnn_jax.inference.checkpoint import Metadata
from mask_rcnn_jax.training import ExperimentConfig
from tests.data.coco_files import annotation, write_dataset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:etils.*")  # by which tfds reads files


@pytest.fixture
def evaluations(monkeypatch, tmp_path) -> list[str]:
    """The images of each evaluation; the stored settings name a COCO directory."""
    found: list[str] = []
    write_dataset(tmp_path / "data", [annotation()], split="val")
    stored = ExperimentConfig(data=DataConfig(CocoConfig(str(tmp_path / "data"))))
    metadata = Metadata(class_names=("cat",), category_ids=(1,), step=7)

    def evaluate(model, data, config, variables, dataset, class_names) -> EvaluationResult:
        found.extend(record.path for record in dataset.records)
        return EvaluationResult({"bbox/AP": 0.5}, [], dataset)

    monkeypatch.setattr(command, "restore_for_inference", lambda *_: (stored, None, metadata))
    monkeypatch.setattr(command, "_check_fits", lambda *_: None)
    monkeypatch.setattr(command, "evaluate_model", evaluate)
    monkeypatch.setattr(command, "use_compile_cache", lambda: None)
    return found


def evaluate(out: Path, *arguments: str) -> int:
    return command.main(["--checkpoint", str(out.parent / "run"), "--out", str(out), *arguments])


def test_shards_are_evaluated_with_their_pictures(evaluations, tmp_path) -> None:
    pytest.importorskip("tensorflow_datasets")
    build_tfds(CocoConfig(str(tmp_path / "data")), tmp_path / "shards", "cats", ["val"])
    source = ["data.source=TfdsConfig", f"data.source.data_dir={tmp_path / 'shards'}", "data.source.name=cats"]
    assert evaluate(tmp_path / "out", "--set", *source) == 0
    assert evaluations
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == len(evaluations)


def test_what_others_wrote_is_found_before_the_evaluation(evaluations, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert evaluate(out) == evaluate(out) == 0
    (picture, *_), count = sorted((out / "pictures").iterdir()), len(evaluations)
    for file in (picture, out / "metrics.json"):
        file.write_text("mine")
        assert evaluate(out) == 2
        assert f"{file} is there already" in capsys.readouterr().err
        assert file.read_text() == "mine"
        assert len(evaluations) == count
        assert evaluate(out, "--overwrite") == 0
        count = len(evaluations)
    assert evaluate(out) == 0


def test_no_input_is_replaced(evaluations, tmp_path, capsys) -> None:
    annotations = tmp_path / "data" / "annotations"
    (annotations / "metrics.json").write_bytes((annotations / "instances_val.json").read_bytes())
    assert evaluate(annotations, "--overwrite", "--set", "data.source.annotation_file=metrics.json") == 2
    assert "metrics.json would replace the input" in capsys.readouterr().err
    assert not evaluations


def test_a_checkpoint_has_nothing_written_where_it_says(evaluations, tmp_path, capsys) -> None:
    source = ["data.source=ShapesConfig", f"data.source.root={tmp_path / 'victim'}"]
    assert evaluate(tmp_path / "out", "--set", *source) == 2
    assert "victim holds no synthetic shapes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
