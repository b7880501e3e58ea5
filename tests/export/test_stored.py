"""Exported models that lie beside this file, as the version of their day wrote them, run in every later one.

`stored.stablehlo.xz` and `stored.onnx.xz` hold the model of `tests/training/stored_run.tar.xz`, made `lively` as in
`tests.export.models` and exported for an input of 40 x 48 pixels and one image a call, StableHLO for CPU alone and with
paths of source files cut to the package's; `stored.npz` holds an image of coloured squares and what ONNX Runtime found.
"""

import lzma
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.export.runtime import load

STORED = Path(__file__).with_name("stored")
BOUNDS = {"boxes": 0.05, "classes": 0, "masks": 2e-4, "scores": 5e-4}  # as in the conformance tests


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_a_stored_export_finds_what_it_found(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"stored.{kind}"
    file.write_bytes(lzma.decompress(STORED.with_suffix(f".{kind}.xz").read_bytes()))
    model = load(file)
    assert model.class_names == ("circle", "square", "triangle", "star", "ring", "cross")
    assert (model.input_size, model.batch, model.metadata["masks"]) == ((40, 48), 1, "probabilities")
    with np.load(STORED.with_suffix(".npz")) as stored:
        (found,) = model.detect([stored["image"]])
        assert found.keys() == BOUNDS.keys()
        for name, bound in BOUNDS.items():
            assert len(found[name]) == 8
            np.testing.assert_allclose(found[name], stored[name], rtol=0, atol=bound, err_msg=name)
