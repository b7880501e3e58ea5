"""A model with a semantic head by the ordinary commands: trained, evaluated, predicted with."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.cli.runs.experiment import load_experiment
from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.inference import Predictor, Stuff, load_model, panoptic_map
from mask_rcnn_jax.models import NormConfig, PanopticConfig, SemanticHeadConfig, init
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata
from mask_rcnn_jax.training.datasets import load_datasets
from mask_rcnn_jax.training.runs.workdir import claim
from mask_rcnn_jax.training.step import init_state
from tests.data.panoptic_files import HEIGHT, IDS, NAMES, WIDTH, write_panoptic
from tests.tiny import one_map_model, tiny_experiment

HEAD = SemanticHeadConfig(
    features=("res3",),
    num_kinds=3,
    channels=16,
    norm=NormConfig(kind="group_norm", groups=4),
    combine=PanopticConfig(min_score=0.01, min_stuff_area=20),
)


def experiment(root: Path) -> ExperimentConfig:
    """Squares on grass and sky, in 64 x 64 pixels."""
    source = replace(write_panoptic(root, "train", count=16), val_split="val")
    write_panoptic(root / "more", "val", count=3, seed=9)
    for part in ("val", "annotations/panoptic_val", "annotations/panoptic_val.json", "annotations/instances_val.json"):
        (root / "more" / part).rename(root / part)
    tiny = one_map_model()
    box_head = replace(tiny.box_head, score_threshold=0.01)
    model = replace(tiny, num_classes=2, box_head=box_head, heads=(HEAD,))
    data = DataConfig(
        source=source,
        short_side=(HEIGHT,),
        short_side_eval=HEIGHT,
        max_side=WIDTH,
        canvas=(64, 64),
        max_instances=4,
        mask_crop=16,
        num_workers=0,
    )
    return replace(tiny_experiment(root), model=model, data=data, evaluation=EvaluationConfig(images_per_device=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose model has learnt nothing."""
    root = tmp_path_factory.mktemp("panoptic")
    config, workdir = experiment(root), root / "run"
    claim(workdir, config)
    metadata = Metadata(("red square", "blue square"), (1, 3), stuff_names=NAMES, stuff_ids=IDS)
    with Checkpoints(workdir, config, metadata) as checkpoints:
        checkpoints.save(init_state(config, init(config.model, jax.random.key(0))))
    return workdir


def test_evaluation_adds_panoptic_quality(run, tmp_path, capsys) -> None:
    assert main(["eval", "--workdir", str(run), "--out", str(tmp_path), "--pictures", "0"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < metrics["stuff/mIoU"] < 1
    assert {f"panoptic/{name}{part}" for part in ("", "_things", "_stuff") for name in ("PQ", "SQ", "RQ")} < set(
        metrics
    )
    assert 0 <= metrics["panoptic/PQ"] < 1
    assert "panoptic things" in capsys.readouterr().out


def test_prediction_writes_maps_of_segments_in_cocos_format(run, tmp_path) -> None:
    image, out = run.parent / "val" / "1.png", tmp_path / "out"
    arguments = ["predict", str(image), "--checkpoint", str(run), "--out", str(out), "--score-threshold", "0.01"]
    assert main([*arguments, "--format", "panoptic", "--batch-size", str(jax.device_count())]) == 0
    model = load_model(run)
    assert model.stuff == Stuff(NAMES, IDS, HEAD.combine)
    found = Predictor(model, score_threshold=0.01, batch_size=jax.device_count())(image)
    assert found.stuff.shape == (HEIGHT, WIDTH)
    expected, segments = panoptic_map(found, HEAD.combine)
    with Image.open(out / "panoptic" / "1.png") as picture:
        numbers = np.asarray(picture).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(numbers, expected)
    content = json.loads((out / "panoptic.json").read_text())
    assert [(each["id"], each["isthing"]) for each in content["categories"]] == [(1, 1), (3, 1), (7, 0), (10, 0)]
    (entry,) = content["annotations"]
    assert (entry["image_id"], entry["file_name"]) == (content["images"][0]["id"], "1.png")
    assert [each["id"] for each in entry["segments_info"]] == [segment.number for segment in segments]
    assert any(not segment.is_thing for segment in segments)
    for each in entry["segments_info"]:
        rows, columns = np.nonzero(numbers == each["id"])
        assert each["area"] == len(rows)
        x, y, width, height = each["bbox"]
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + width, y + height)


def test_tiles_give_no_map_of_segments(run, tmp_path, capsys) -> None:
    """Which is said before anything is computed or written."""
    image, out = run.parent / "val" / "1.png", tmp_path / "out"
    arguments = ["predict", str(image), "--checkpoint", str(run), "--out", str(out), "--tile", "64"]
    assert main([*arguments, "--format", "panoptic"]) == 2
    assert "kinds of stuff are not put together from tiles; leave --tile away" in capsys.readouterr().err
    assert not out.exists()


def other_split(root: Path) -> None:
    """The val split again, where sky has another name."""
    for name in ("instances_{}.json", "panoptic_{}.json"):
        text = (root / "annotations" / name.format("val")).read_text()
        (root / "annotations" / name.format("other")).write_text(text.replace('"sky"', '"heaven"'))
    (root / "other").symlink_to(root / "val")
    (root / "annotations" / "panoptic_other").symlink_to(root / "annotations" / "panoptic_val")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.source.panoptic_file=none"], "comes without labels of pixels, from which semantic_head learns; name"),
        (
            ["model.heads[0].num_kinds=5"],
            r"comes with 2 kinds of stuff but model\.heads\[0\]\.num_kinds is 5; add --set model",
        ),
        (["data.copy_paste=0.5"], "comes with labels of pixels, which copy-paste does not move; set data"),
        (["data.source.val_split=other"], "have different kinds of stuff"),
        (["data.source.panoptic_file=nothing.json"], r"nothing\.json does not exist; put it there"),
    ],
)
def test_data_that_the_head_cannot_learn_from_are_refused(run, settings, message) -> None:
    config = override(load_experiment(run), settings)
    if settings == ["data.source.val_split=other"]:
        other_split(run.parent)
    with pytest.raises(UserError, match=message):
        load_datasets(config)


def test_segments_to_evaluate_on_are_missed_before_training(run) -> None:
    """Training itself does with the prepared files."""
    root = run.parent
    (root / "panoptic_stuff_val").symlink_to(root / "more" / "panoptic_stuff_val")
    config = override(load_experiment(run), ["data.source.semantic_folder=panoptic_stuff_{split}"])
    assert load_datasets(config).keys() == {"train", "val"}
    one = root / "annotations" / "panoptic_val" / "1.png"
    one.rename(one.with_suffix(".moved"))
    try:
        with pytest.raises(UserError, match=r"panoptic_val/1\.png, which belongs to .*, does not exist; restore it"):
            load_datasets(config)
    finally:
        one.with_suffix(".moved").rename(one)


def test_kinds_of_another_number_are_not_evaluated_on(run, tmp_path, capsys) -> None:
    file = run.parent / "annotations" / "panoptic_fewer.json"
    content = json.loads((run.parent / "annotations" / "panoptic_val.json").read_text())
    content["categories"] = [each for each in content["categories"] if each["id"] != 10]
    for entry in content["annotations"]:
        entry["segments_info"] = [each for each in entry["segments_info"] if each["category_id"] != 10]
    file.write_text(json.dumps(content))
    file.with_suffix("").symlink_to(file.parent / "panoptic_val")
    arguments = [
        "eval",
        "--workdir",
        str(run),
        "--out",
        str(tmp_path),
        "--set",
        f"data.source.panoptic_file={file.name}",
    ]
    assert main(arguments) == 2
    assert "comes with 1 kinds of stuff but the model knows 2" in capsys.readouterr().err


def test_kinds_in_another_order_are_not_evaluated_on(run, tmp_path, capsys) -> None:
    file = run.parent / "annotations" / "panoptic_exchanged.json"
    content = json.loads((run.parent / "annotations" / "panoptic_val.json").read_text())
    exchanged = {7: 10, 10: 7}
    entries = [segment for entry in content["annotations"] for segment in entry["segments_info"]]
    for each, key in [(each, "id") for each in content["categories"]] + [(each, "category_id") for each in entries]:
        each[key] = exchanged.get(each[key], each[key])
    file.write_text(json.dumps(content))
    file.with_suffix("").symlink_to(file.parent / "panoptic_val")
    settings = ["--set", f"data.source.panoptic_file={file.name}"]
    assert main(["eval", "--workdir", str(run), "--out", str(tmp_path), "--pictures", "0", *settings]) == 2
    assert "the kinds of stuff sky, grass but the model was trained on grass, sky; eval" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_model_learns_things_and_stuff(run, tmp_path) -> None:
    workdir = tmp_path / "learning"
    settings = ["steps=150", "schedule.learning_rate=0.04", "log_every=10", "checkpoint_every=150"]
    assert main(["train", "--config", str(run), "--workdir", str(workdir), "--set", *settings]) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/semantic"] for line in lines if "loss/semantic" in line]
    assert losses[-1] < 0.3 * losses[0]
    assert main(["eval", "--workdir", str(workdir), "--pictures", "0"]) == 0
    metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
    assert metrics["stuff/mIoU"] > 0.7
    assert metrics["panoptic/PQ_stuff"] > 0.7
