"""A run's folder belongs to one configuration once something was trained in it."""

from dataclasses import replace

import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.workdir import claim, read_config
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
