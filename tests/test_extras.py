"""What a plain installation lacks is said by name, with the extra that brings it."""

import sys
from pathlib import Path

import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import EXTRAS, require
from mask_rcnn_jax.training import loop
from mask_rcnn_jax.training.reporting.metrics import SilentWriter


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(extra: str, monkeypatch) -> None:
    (package,) = EXTRAS[extra]
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"a thing needs the package {package} .*; run: pip install 'mask-rcnn-jax\[{extra}\]'"
    with pytest.raises(UserError, match=words):
        require(extra, "a thing")


def test_a_folder_of_a_packages_name_is_no_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "wandb").mkdir()  # as Weights & Biases leaves one beside its runs
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(
        UserError, match=r"needs the package wandb \(a folder wandb is in its place\); run: pip install"
    ):
        require("wandb", "a thing")
    sys.modules.pop("wandb", None)


@pytest.mark.parametrize(
    ("option", "extra"), [("--format=geojson", "outlines"), ("--tile=64", "tiles")], ids=["geojson", "tile"]
)
def test_predict_says_it_before_it_reads_a_model(option: str, extra: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, EXTRAS[extra][0], None)
    assert main(["predict", str(tmp_path), "--checkpoint", "absent", "--out", str(tmp_path / "out"), option]) == 2
    assert f"error: {option.partition('=')[0]}" in (message := capsys.readouterr().err)
    assert f"mask-rcnn-jax[{extra}]" in message


def test_training_goes_on_without_its_curves(tmp_path: Path, monkeypatch) -> None:
    writer, said = SilentWriter(), []
    monkeypatch.setattr(writer, "say", said.append)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    loop._draw(tmp_path, writer)
    assert len(said) == 1
    assert f"{tmp_path / 'curves.png'} needs the package matplotlib" in said[0]
    assert not list(tmp_path.iterdir())
