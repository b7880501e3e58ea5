"""Metrics for Weights & Biases, without its server."""

import sys
from pathlib import Path

import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.reporting.metrics import SilentWriter
from mask_rcnn_jax.training.reporting.weights_and_biases import logged_to_wandb
from tests.tiny import tiny_experiment


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with (
        pytest.raises(UserError, match=r"--wandb needs .* pip install 'mask-rcnn-jax\[wandb\]'"),
        logged_to_wandb(SilentWriter(), "shapes", tmp_path, tiny_experiment(tmp_path)),
    ):
        pass


@pytest.mark.filterwarnings("ignore")  # of wandb's own packages
def test_a_run_offline_keeps_its_id_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny_experiment(tmp_path)
    for step in (1, 2):
        with logged_to_wandb(SilentWriter(), "shapes", tmp_path, config) as writer:
            writer.write(step, {"loss": 1.0, "b": float("nan"), "histogram/x_by_iou/0.0": 1.0})
            assert writer._run.summary["loss"] == 1.0
            assert "b" not in set(writer._run.summary.keys())
    records = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.stem for path in records} == {f"run-{(tmp_path / 'wandb_id').read_text().strip()}"}
