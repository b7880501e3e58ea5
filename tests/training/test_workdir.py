"""A run's folder belongs to one configuration once something was trained in it."""

import errno
import fcntl
import os
from dataclasses import replace

import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.workdir import check_workdir, claim, locked, read_config
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


def test_a_spoilt_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not fit this version"):
        read_config(tmp_path)


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


def test_no_run_begins_inside_a_checkpoint(tmp_path):
    for item in ("model", "metadata", "optimizer"):
        (tmp_path / "checkpoints" / "2" / item).mkdir(parents=True)
    for place in (tmp_path / "checkpoints" / "2", tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=f"--workdir {place} lies in"):
            check_workdir(place)
