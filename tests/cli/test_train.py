"""`train.py`: mistakes are answered with one sentence and exit status 2, before the workdir is touched."""

import pytest

from mask_rcnn_jax.cli.runs.train import main
from mask_rcnn_jax.data import DataConfig, ShapesConfig
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.runs.workdir import claim
from tests.data.coco_files import annotation, write_dataset

SMALL = [
    "data.canvas=32,32",
    "data.short_side=16",
    "data.max_side=32",
    "data.num_workers=0",
    "model.num_classes=2",
    "batch_size=8",
]


def refused(capsys, tmp_path, *arguments: str) -> str:
    """The message of a run that must be refused without leaving anything behind."""
    assert main(["--workdir", str(tmp_path / "run"), *arguments]) == 2
    assert not (tmp_path / "run").exists()
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("schedule.learning_rat=1", ["schedule.learning_rat", "schedule.learning_rate"]),
        ("batch_size=many", ["batch_size", "int", "many"]),
        ("batch_size=0", ["batch_size must be at least 1"]),
        ("optimizer=Adam", ["optimizer", "AdamWConfig"]),
        ("data.canvas=128", ["data.canvas"]),
        ("steps", ["steps", "key=value"]),
    ],
)
def test_settings_are_checked(capsys, tmp_path, setting, parts):
    message = refused(capsys, tmp_path, "--set", setting)
    assert all(part in message for part in parts), message


def test_a_config_file_that_is_not_there_is_named(capsys, tmp_path):
    assert "nowhere.py does not exist" in refused(capsys, tmp_path, "--config", str(tmp_path / "nowhere.py"))


@pytest.mark.parametrize("option", ["--config", "--workdir"])
def test_names_that_no_file_system_takes_are_refused(capsys, option):
    assert main([option, "a" * 5000]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_config_of_something_else_is_named(capsys, tmp_path):
    file = tmp_path / "other.py"
    file.write_text("from mask_rcnn_jax.data import CocoConfig\n\n\ndef get_config():\n    return CocoConfig()\n")
    assert "must return an ExperimentConfig, not CocoConfig" in refused(capsys, tmp_path, "--config", str(file))


def on(root) -> list[str]:
    return ["--set", "data.source=CocoConfig", f"data.source.root={root}", *SMALL]


def test_a_missing_directory_is_named(capsys, tmp_path):
    assert str(tmp_path / "nothing") in refused(capsys, tmp_path, *on(tmp_path / "nothing"))


def test_a_truncated_image_is_named_before_the_first_step(capsys, tmp_path):
    root = tmp_path / "set"
    for split in ("train", "val"):
        write_dataset(tmp_path / split, [annotation(), annotation(id=2, image_id=3)], split=split)
        for part in ("annotations", split):
            (root / part).mkdir(parents=True, exist_ok=True)
            for file in (tmp_path / split / part).iterdir():
                (root / part / file.name).write_bytes(file.read_bytes())
    image = root / "train" / "3.png"
    image.write_bytes(image.read_bytes()[:-30])
    message = refused(capsys, tmp_path, *on(root))
    assert str(image) in message


def test_pretrained_weights_that_are_not_there_are_named(capsys, tmp_path):
    source = ["data.source.root=" + str(tmp_path / "shapes"), "data.source.num_train=2", "data.source.num_val=1"]
    missing = str(tmp_path / "weights.npz")
    message = refused(capsys, tmp_path, "--set", *source, "batch_size=8", f"pretrained={missing}")
    assert f"pretrained={missing}" in message


def test_a_folder_that_is_no_run_is_no_config(capsys, tmp_path):
    message = refused(capsys, tmp_path, "--config", str(tmp_path))
    assert f"--config {tmp_path} is a folder without a run's config.json" in message


@pytest.mark.parametrize("option", ["--config", "--workdir"])
def test_a_folder_does_not_say_where_to_write(option, tmp_path, capsys) -> None:
    source = ShapesConfig(root=str(tmp_path / "victim"))
    claim(tmp_path / "theirs", ExperimentConfig(data=DataConfig(source)))
    workdir = [] if option == "--workdir" else ["--workdir", str(tmp_path / "mine")]
    assert main([option, str(tmp_path / "theirs"), *workdir]) == 2
    assert (
        "victim holds no synthetic shapes, which only mask-rcnn train --config FILE.py writes"
        in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
