"""A run's folder belongs to one configuration once something was trained in it."""

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import CocoConfig, LvisConfig, MixtureConfig, TfdsConfig
from mask_rcnn_jax.disk.places import latest_step
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.runs.workdir import check_workdir, claim, locked, read_config
from tests.tiny import tiny_experiment


def test_a_claimed_folder_tells_its_configuration(tmp_path):
    config = tiny_experiment(tmp_path)
    assert read_config(tmp_path / "run") is None
    claim(tmp_path / "run", config)
    claim(tmp_path / "run", config)
    assert read_config(tmp_path / "run") == config


def test_a_run_that_trained_nothing_makes_way(tmp_path):
    config = tiny_experiment(tmp_path)
    claim(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    claim(tmp_path, replace(config, seed=3))
    assert read_config(tmp_path) == replace(config, seed=3)


@pytest.mark.parametrize("leftover", ["checkpoints/2/x", "metrics.jsonl"])
def test_what_was_trained_is_kept(tmp_path, leftover):
    config = tiny_experiment(tmp_path)
    claim(tmp_path, config)
    file = tmp_path / leftover
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}\n")
    with pytest.raises(UserError, match=r"another configuration \(seed: 0 != 3\)"):
        claim(tmp_path, replace(config, seed=3))
    assert read_config(tmp_path) == config
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"but no config\.json"):
        claim(tmp_path, config)


INCIDENTAL = [
    "data.num_workers=3",
    "data.max_pixels=1000",
    "data.source.root=elsewhere",
    "evaluation.images_per_device=1",
    "images_per_device=1",
    "log_every=7",
    "checkpoint_every=9",
]


@pytest.mark.parametrize("change", INCIDENTAL)
def test_what_does_not_decide_the_result_may_differ_on_resume(tmp_path, change):
    config = tiny_experiment(tmp_path)
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    changed = override(config, [change])
    assert claim(tmp_path, changed) == changed
    assert read_config(tmp_path) == changed
    with pytest.raises(UserError, match=r"another configuration \(seed: 0 != 3\)"):
        claim(tmp_path, replace(config, seed=3))


def test_only_the_root_of_each_source_may_differ(tmp_path):
    def mixture(root: str, split: str = "train") -> ExperimentConfig:
        sources = (CocoConfig(root=root), LvisConfig(root=root, train_split=split), TfdsConfig(data_dir=root))
        return replace(config, data=replace(config.data, source=MixtureConfig(sources)))

    config = tiny_experiment(tmp_path)
    claim(tmp_path, mixture("a"))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert claim(tmp_path, mixture("b")) == mixture("b")
    for other in (mixture("b", "other"), replace(config, data=replace(config.data, source=CocoConfig(root="b")))):
        with pytest.raises(UserError, match=r"another configuration \(data\.source(\.sources\[1\]\.train_split)?: "):
            claim(tmp_path, other)


def test_where_the_weights_came_from_matters_until_there_is_a_checkpoint(tmp_path):
    config = tiny_experiment(tmp_path, pretrained="weights.pth")
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"another configuration \(pretrained: "):
        claim(tmp_path, replace(config, pretrained=None))
    (tmp_path / "checkpoints" / "1").mkdir()
    assert claim(tmp_path, replace(config, pretrained=None)) == config
    assert read_config(tmp_path) == config


def test_a_spoilt_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not fit this version"):
        read_config(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Names that are too long fail as folders do that may not be searched, whoever runs the tests."""
    with pytest.raises(UserError, match=r"config\.json cannot be read \(File name too long\); mend that"):
        read_config(tmp_path / ("a" * 300))
    with pytest.raises(UserError, match=r"checkpoints cannot be read \(File name too long\); mend that"):
        check_workdir(tmp_path / ("a" * 300))

    def fails(folder):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "iterdir", fails)
    for action in (check_workdir, latest_step, lambda workdir: claim(workdir, tiny_experiment(workdir))):
        with pytest.raises(UserError, match=r"checkpoints cannot be read \(Stale file handle\); mend that"):
            action(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        claim(tmp_path / "file" / "run", tiny_experiment(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, number):
    def refuses(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with locked(tmp_path / "run") as told:
        assert len(told) == 1
        assert f"{tmp_path / 'run'} is on a file system without locks ({os.strerror(number)})" in told[0]


def test_a_second_run_is_kept_out_and_nothing_is_said_of_locks_that_work(tmp_path):
    with locked(tmp_path / "run") as told:
        assert told == []
        with pytest.raises(UserError, match="another run is at work in"), locked(tmp_path / "run"):
            pass


def test_weights_to_start_from_are_no_run(tmp_path):
    """As `import` leaves them; a run's own checkpoints may have lost their optimizer to a copy that was broken off."""
    claim(tmp_path, tiny_experiment(tmp_path))
    check_workdir(tmp_path)
    for item in ("model", "metadata"):
        (tmp_path / "checkpoints" / "0" / item).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        check_workdir(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} holds weights to start from, such as an import's")
    assert str(error.value).endswith(f"train in another --workdir with pretrained={tmp_path}")
    (tmp_path / "starts.jsonl").touch()
    check_workdir(tmp_path)
    (tmp_path / "starts.jsonl").unlink()
    (tmp_path / "checkpoints" / "2" / "optimizer").mkdir(parents=True)
    check_workdir(tmp_path)


def test_an_unfinished_checkpoint_alone_makes_way(tmp_path):
    """As an import leaves it that was killed, and is repeated with other settings."""
    config = tiny_experiment(tmp_path)
    claim(tmp_path, config)
    (tmp_path / "checkpoints" / "0.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    check_workdir(tmp_path)
    claim(tmp_path, replace(config, seed=3))
    assert read_config(tmp_path) == replace(config, seed=3)


def test_a_run_does_not_begin_again_beside_a_checkpoint_of_another_name(tmp_path):
    claim(tmp_path, tiny_experiment(tmp_path))
    for item in ("model", "metadata", "optimizer"):
        (tmp_path / "checkpoints" / "0100" / item).mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoints/0100 is not named as the checkpoint of a step is"):
        check_workdir(tmp_path)


def test_no_run_begins_inside_a_checkpoint(tmp_path):
    for item in ("model", "metadata", "optimizer"):
        (tmp_path / "checkpoints" / "2" / item).mkdir(parents=True)
    for place in (tmp_path / "checkpoints" / "2", tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=f"--workdir {place} lies in"):
            check_workdir(place)
