"""Values of a head's own through exported files, with a detector that reads them off the pixels."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export import program as program_module
from mask_rcnn_jax.export.program import Exportable, ExportSettings, program
from mask_rcnn_jax.export.resize import Preprocessing
from mask_rcnn_jax.export.runtime import load
from mask_rcnn_jax.export.stablehlo import export_stablehlo
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.structures import PaddedDetections

SETTINGS = ExportSettings((32, 40), Preprocessing(16, 32, (16, 32)), batch=2)
MODEL = Exportable(MaskRCNNConfig(dtype="bfloat16"), Variables({"scale": jnp.float32(2)}, {}), ("a", "b"), SETTINGS)


def detect(config, variables, images, image_sizes, pool) -> PaddedDetections:
    """Finds two instances of three, and maps the mean of the colours at the pixels and at cells of 4 x 8 of them."""
    count, mean = len(images), images.astype(jnp.float32).mean(axis=-1)
    valid = jnp.broadcast_to(jnp.arange(3) < 2, (count, 3))
    code = jnp.where(valid[..., None], mean[:, :1, :1] * jnp.arange(1, 5), 0.0)
    return PaddedDetections(
        boxes=jnp.zeros((count, 3, 4)),
        scores=jnp.where(valid, 0.5, 0.0),
        classes=jnp.zeros((count, 3), jnp.int32),
        masks=None,
        valid=valid,
        extras={"t5": code.astype(config.dtype), "number": jnp.where(valid, jnp.arange(3), 0).astype(jnp.int32)},
        maps={"mean": mean, "coarse": mean.reshape(count, 4, 4, 4, 8).mean(axis=(2, 4))[..., None]},
    )


def test_files_state_the_licence_of_imported_weights() -> None:
    assert program_module.metadata(replace(MODEL, licence="free"))["licence"] == "free"
    assert "licence" not in program_module.metadata(MODEL)


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_files_give_them_without_padding(monkeypatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(program_module, "detect", detect)
    path = tmp_path / f"model.{kind}"
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        from mask_rcnn_jax.export.to_onnx import export_onnx

        export_onnx(MODEL, path)
    else:
        export_stablehlo(MODEL, path)
    small, large = np.full((10, 20, 3), 32, np.uint8), np.full((16, 16, 3), 64, np.uint8)
    one, two = load(path).detect([small, large])
    assert one.keys() == {"boxes", "scores", "classes", "t5", "number", "mean", "coarse"}
    # Scaled to a short side of 16, the first image is as large as the canvas; the second has half of its columns.
    assert (one["mean"].shape, one["coarse"].shape) == ((16, 32), (4, 4, 1))
    assert (two["mean"].shape, two["coarse"].shape) == ((16, 16), (4, 2, 1))
    np.testing.assert_array_equal(two["coarse"], np.full((4, 2, 1), 64))
    np.testing.assert_array_equal(two["t5"], [[64, 128, 192, 256]] * 2)
    np.testing.assert_array_equal(one["number"], [0, 1])
    assert (one["t5"].dtype, one["number"].dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(
    ("extras", "maps"), [(["scores"], []), ([], ["images"]), (["a"], ["a"]), (["a_cells"], ["a"]), (["a b"], [])]
)
def test_a_clash_is_refused(monkeypatch, extras, maps) -> None:
    def clashing(*arguments) -> PaddedDetections:
        found = detect(*arguments)
        given, grids = dict.fromkeys(extras, found.scores), dict.fromkeys(maps, jnp.zeros((2, 4, 4)))
        return PaddedDetections(found.boxes, found.scores, found.classes, None, found.valid, None, given, grids)

    monkeypatch.setattr(program_module, "detect", clashing)
    images, sizes = jnp.zeros((2, 32, 40, 3), jnp.uint8), jnp.full((2, 2), 16)
    with pytest.raises(UserError, match="a head calls a value"):
        program(MODEL.config, SETTINGS)(MODEL.variables, images, sizes)
