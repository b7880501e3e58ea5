"""A trained model finds in the tiles of a mosaic what it finds in its pieces."""

from pathlib import Path

import pytest

from benchmarks.tiling import measure, shape_pieces
from mask_rcnn_jax.cli.runs.train import main as train
from mask_rcnn_jax.data import ShapesConfig
from mask_rcnn_jax.inference import load_model

CONFIG = Path(__file__).parents[2] / "configs" / "shapes.py"


@pytest.mark.slow
def test_tiles_cost_less_than_two_points_of_ap(tmp_path):
    settings = ["steps=1000", "eval_every=0", "checkpoint_every=1000", f"data.source.root={tmp_path / 'shapes'}"]
    assert train(["--config", str(CONFIG), "--workdir", str(tmp_path / "run"), "--set", *settings]) == 0
    model = load_model(tmp_path / "run")
    source = model.data.source
    assert isinstance(source, ShapesConfig)
    report = measure(model, shape_pieces(source, 100), None, 64)
    pieces, tiled = report["AP"]["pieces"], report["AP"]["tiled"]
    assert pieces["segm"] > 0.35
    assert tiled["segm"] > pieces["segm"] - 0.02
    assert tiled["bbox"] > pieces["bbox"] - 0.02
