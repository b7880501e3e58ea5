"""Checkpoints are known wherever they lie, and only they."""

from pathlib import Path

import pytest

from mask_rcnn_jax.cli import export, import_weights
from mask_rcnn_jax.cli.data import browse, build_tfds, convert
from mask_rcnn_jax.cli.prediction import predict
from mask_rcnn_jax.cli.runs import train
from mask_rcnn_jax.disk.places import check_place, checkpoints_in, latest_step, run_folder, step_of
from mask_rcnn_jax.errors import UserError


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    for item in ("model", "metadata"):
        (tmp_path / "run" / "checkpoints" / "5" / item).mkdir(parents=True)
    return tmp_path / "run" / "checkpoints" / "5"


def test_the_run_of_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    assert run_folder(checkpoint) == run_folder(tmp_path / "run") == tmp_path / "run"
    copy = checkpoint.rename(tmp_path / "7")
    assert run_folder(copy) == tmp_path
    copy.rename(checkpoint)
    (tmp_path / "link").symlink_to(checkpoint)
    assert run_folder(tmp_path / "link") == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert run_folder(Path("run/checkpoints/5")) == Path("run")
    monkeypatch.chdir(checkpoint.parent)
    assert run_folder(Path("5")) == tmp_path / "run"


def test_places_among_checkpoints_are_refused(checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(checkpoint)
    for place in (checkpoint, checkpoint / "a" / "b", checkpoint.parent, checkpoint.parent / "eval", tmp_path / "link"):
        with pytest.raises(UserError, match=f"--out {place} lies in {checkpoint.parent}"):
            check_place("--out", place)
    (tmp_path / "checkpoints" / "scans").mkdir(parents=True)  # a folder of that name may hold anything else
    for place in (tmp_path / "run" / "eval", tmp_path / "new", tmp_path / "checkpoints" / "eval", tmp_path / "5"):
        check_place("--out", place)


def test_every_command_refuses_to_write_there(checkpoint, tmp_path, capsys):
    out = ["--out", str(checkpoint / "out.onnx")]
    data = str(tmp_path / "nothing")
    for command, arguments in (
        (browse, ["--data", data]),
        (build_tfds, [data]),
        (convert, ["labelme", data]),
        (export, ["--checkpoint", data]),
        (import_weights, [data]),
        (predict, [data, "--checkpoint", data]),
    ):
        assert command.main([*arguments, *out]) == 2, command
        assert f"error: --out {checkpoint}/out.onnx lies in {checkpoint}, " in capsys.readouterr().err, command


@pytest.mark.parametrize("name", ["0005", "00", "5\n", " 5", "\N{FULLWIDTH DIGIT FIVE}", "2147483648", "9" * 30])
def test_numbers_that_are_no_name_of_a_step_are_refused(checkpoint, name):
    """Orbax passes over some of them, and looks for others under another name."""
    assert step_of(name) is None
    assert latest_step(checkpoint.parents[1]) == 5
    other = checkpoint.parent / name
    other.mkdir()
    for found in (lambda: checkpoints_in(checkpoint.parent), lambda: latest_step(checkpoint.parents[1])):
        with pytest.raises(UserError, match="is not named as the checkpoint of a step is, such as 0 or 100") as error:
            found()
        assert str(error.value).startswith(str(other))


@pytest.mark.parametrize("name", ["5.bak", "5.orbax-checkpoint-tmp", "best", "-5", "1_0"])
def test_other_names_among_checkpoints_are_passed_over(checkpoint, name):
    (checkpoint.parent / name).mkdir()
    assert checkpoints_in(checkpoint.parent) == {5: checkpoint}


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run"])
def test_urls_are_no_places(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--workdir", url]) == 2
    assert f"--workdir {url} is a URL, and only folders can be written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
