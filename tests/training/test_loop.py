"""Whole runs: what they leave behind, going on after a stop or a kill, and mistakes found before the first step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import KeypointHeadConfig
from mask_rcnn_jax.training import train
from mask_rcnn_jax.training.datasets import describe_keypoints, load_datasets
from tests.tiny import one_map_model, tiny_experiment, tiny_pooler

ROOT = Path(__file__).parents[2]
TIMES = {"images_per_second", "data_wait", "time", "memory"}


def history(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.partition("/")[0] not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, with an evaluation after two of them."""
    root = tmp_path_factory.mktemp("finished")
    config = tiny_experiment(root, model=one_map_model(), eval_every=2)
    return config, root / "run", train(config, root / "run")


def test_a_run_leaves_its_settings_metrics_events_and_checkpoints(finished):
    config, workdir, metrics = finished
    assert json.loads((workdir / "config.json").read_text()) == to_json(config)
    assert list((workdir / "tensorboard").glob("events.*"))
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [2, 4]
    lines = history(workdir)
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    losses = {"loss", "loss/rpn_objectness", "loss/rpn_box", "loss/box_class", "loss/box", "loss/mask"}
    assert losses | {"learning_rate", "gradient_norm", "dropped_instances"} <= set(lines[0])
    assert {"segm/AP", "segm/AP50", "bbox/AP75", "segm/APs", "segm/AP/circle"} <= set(lines[2])
    assert set(metrics) == set(lines[-1]) - {"step"}


def test_a_finished_run_is_not_trained_again(finished, capsys):
    config, workdir, metrics = finished
    before = history(workdir)
    again = train(config, workdir)
    assert "has finished its 4 steps already" in capsys.readouterr().out
    np.testing.assert_equal(again, metrics)
    assert [line["step"] for line in history(workdir)][: len(before)] == [line["step"] for line in before]


def test_a_workdir_of_another_configuration_is_left_alone(finished):
    config, workdir, _ = finished
    files = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(UserError, match=r"another configuration \(.*learning_rate: 0\.01 != 0\.02"):
        train(replace(config, schedule=replace(config.schedule, learning_rate=0.02)), workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == files


def test_checkpoints_without_settings_are_left_alone(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.json; use another --workdir"):
        train(config, tmp_path)


def test_a_number_out_of_range_is_refused_before_the_workdir_is_touched(tmp_path):
    with pytest.raises(UserError, match=r"^batch_size must be at least 1, not 0$"):
        train(tiny_experiment(tmp_path / "data", batch_size=0), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_classes_of_the_model_and_the_data_must_agree(finished, tmp_path):
    config, _, _ = finished
    with pytest.raises(UserError, match=r"has 6 categories but .* is 3; add --set model\.num_classes=6"):
        train(replace(config, model=replace(config.model, num_classes=3)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keypoints_that_change_places_are_checked_and_said(tmp_path):
    config = tiny_experiment(tmp_path)
    config.data.source.prepare()
    dataset = replace(load_datasets(config)["train"], keypoint_names=("l_eye", "r_eye"))
    model = replace(config.model, keypoint_head=KeypointHeadConfig(tiny_pooler(14), num_keypoints=2))
    (line,) = describe_keypoints(dataset, replace(config, model=model))
    assert line == "keypoints that change places in a flip: l_eye and r_eye; 0 stay in place"
    assert describe_keypoints(dataset, config) == []
    with pytest.raises(UserError, match=r"data\.keypoint_flips names 'l_eye', but the dataset has no keypoints"):
        load_datasets(replace(config, data=replace(config.data, keypoint_flips=(("l_eye", "r_eye"),))))


def test_a_keypoint_model_needs_data_with_its_keypoints(finished, tmp_path):
    config, _, _ = finished
    head = KeypointHeadConfig(config.model.mask_head.pooler)
    with pytest.raises(UserError, match=r"names 0 keypoints but model\.keypoint_head\.num_keypoints is 17"):
        train(
            replace(config, model=replace(config.model, keypoint_head=head)),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
