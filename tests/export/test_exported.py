"""Whole models in files: both kinds find what evaluation finds, and the runtime needs nothing else of the package."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from mask_rcnn_jax.export import stablehlo as stablehlo_module
from mask_rcnn_jax.export.program import Exportable, ExportSettings, abstract_inputs, program
from mask_rcnn_jax.export.resize import Preprocessing
from mask_rcnn_jax.export.runtime import FORMAT, PLATFORMS, BrokenFileError, ExportedModel, load
from mask_rcnn_jax.export.stablehlo import export_stablehlo
from mask_rcnn_jax.models import RoIPoolConfig, Variables, abstract
from mask_rcnn_jax.ops import RoIGrid, multilevel_roi_align
from tests.export.models import CANVAS, CLASS_NAMES, INPUT, assert_same, config, exportable, ordinary, pictures
from tests.programs import count_exact_products

# What a person runs who has the file and the module alone: finds things in pictures, and tells what was imported.
STRANGER = """
import json, sys
import numpy as np
from mask_rcnn_jax.export.runtime import load
model = load(sys.argv[1])
pictures = np.load(sys.argv[2])
found = model.detect([pictures[name] for name in pictures.files])
np.savez(sys.argv[3], **{f"{i}_{name}": array for i, one in enumerate(found) for name, array in one.items()})
print(json.dumps([sorted(sys.modules), model.class_names, model.batch]))
"""


@pytest.fixture(scope="module")
def expected() -> list:
    return ordinary(exportable("fpn"), pictures())


@pytest.fixture(scope="module")
def stablehlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes any number of images."""
    path = tmp_path_factory.mktemp("export") / "model.stablehlo"
    export_stablehlo(exportable("fpn", batch=None), path)
    return path


def onnx_model(name: str, folder: Path, paste_masks: bool = False) -> ExportedModel:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from mask_rcnn_jax.export.to_onnx import export_onnx

    export_onnx(exportable(name, 2, paste_masks), folder / f"{name}.onnx")
    return load(folder / f"{name}.onnx")


def test_stablehlo_runs_without_the_package_and_finds_the_same(stablehlo, expected, tmp_path):
    np.savez(tmp_path / "pictures.npz", *pictures())
    command = [sys.executable, "-c", STRANGER, stablehlo, tmp_path / "pictures.npz", tmp_path / "found.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules, names, batch = json.loads(done.stdout)
    ours = [name for name in modules if name.partition(".")[0] in ("mask_rcnn_jax", "flax", "orbax", "PIL")]
    assert ours == ["mask_rcnn_jax", "mask_rcnn_jax.export", "mask_rcnn_jax.export.runtime"]
    assert (tuple(names), batch) == (CLASS_NAMES, None)
    arrays = np.load(tmp_path / "found.npz")
    for number, one in enumerate(expected):
        mine = {key.split("_", 1)[1]: arrays[key] for key in arrays.files if key.startswith(f"{number}_")}
        assert_same(mine, one)


def test_onnx_finds_the_same(expected, tmp_path):
    model = onnx_model("fpn", tmp_path)
    assert (model.class_names, model.input_size, model.batch) == (CLASS_NAMES, INPUT, 2)
    for found, one in zip(model.detect(pictures()), expected, strict=True):
        assert_same(found, one)


def test_onnx_with_torchvisions_conventions_and_pasted_masks(tmp_path):
    model, source = onnx_model("torchvision", tmp_path, paste_masks=True), exportable("torchvision")
    for found, one in zip(model.detect(pictures()), ordinary(source, pictures()), strict=True):
        assert_same(found, one, pasted=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c4", "cascade", "roi_pool", "softmax", "mlp"])
def test_other_members_of_the_family(name, tmp_path):
    source = exportable(name)
    export_stablehlo(source, tmp_path / "model.stablehlo")
    expected = ordinary(source, pictures())
    for model in (load(tmp_path / "model.stablehlo"), onnx_model(name, tmp_path)):
        for found, one in zip(model.detect(pictures()), expected, strict=True):
            assert_same(found, one)


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("tpu",), PLATFORMS])
def test_each_platform_has_its_own_form_of_roi_align(platforms):
    """Cells are gathered in two loops on CPU and one on GPU, and windows multiplied in a loop on TPU; one file for
    several platforms holds all forms and chooses.
    """

    def pooled(features, rois, levels):
        return multilevel_roi_align([features], rois, levels, [0.25], RoIGrid(7))

    batch = export.symbolic_shape("batch")[0]
    shapes = [((batch, 16, 16, 8), np.float32), ((batch, 10, 4), np.float32), ((batch, 10), np.int32)]
    inputs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    text = export.export(jax.jit(pooled), platforms=platforms)(*inputs).mlir_module()
    loops, products = (text.count(f"stablehlo.{name}") for name in ("while", "dot_general"))
    assert loops == {("cpu",): 2, ("cuda",): 1, ("tpu",): 1}.get(platforms, 2 + 1 + 1)
    assert (products > 0) == ("tpu" in platforms)
    assert len(platforms) == 1 or "stablehlo.case" in text


@pytest.mark.parametrize(("platform", "of_a_level"), [("cuda", 0), ("tpu", 2)])
def test_only_layers_round_in_products_from_bytes_to_bitmaps(platform, of_a_level):
    settings = ExportSettings(INPUT, Preprocessing(64, 96, CANVAS), paste_masks=True)
    variables = abstract(config("fpn"))
    traced = jax.jit(program(config("fpn"), settings)).trace(variables, *abstract_inputs(settings, 1))
    # Resizing, RoIAlign of three poolers on four levels (not on a GPU), masks of classes, keypoints, pasting.
    assert count_exact_products(traced.lower(lowering_platforms=(platform,))) > 4 + 3 * 4 * of_a_level


def test_onnx_runtime_is_kept_from_tf32(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

    asked = []

    def session(path, providers):
        asked.extend(providers)
        raise InvalidProtobuf("not needed here")

    present = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(BrokenFileError):
        load(tmp_path / "model.onnx")
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def test_a_file_says_what_it_holds(stablehlo):
    with zipfile.ZipFile(stablehlo) as archive:
        described = json.loads(archive.read("metadata.json"))
        exported = export.deserialize(bytearray(archive.read("program.bin")))
    assert described["class_names"] == list(CLASS_NAMES)
    assert described["platforms"] == list(exported.platforms) == ["cpu", "cuda", "tpu"]
    assert described["preprocessing"]["canvas"] == [64, 96]


def test_a_file_has_no_paths_of_the_machine(stablehlo):
    with zipfile.ZipFile(stablehlo) as archive:
        content = archive.read("program.bin")
    assert b"stablehlo" in content.lower()
    assert b".py" not in content
    assert os.fsencode(Path(__file__).parents[2]) not in content


def test_the_same_model_gives_the_same_bytes(tmp_path, monkeypatch):
    """From any folder: here, the same code under the names of other files."""
    written = []
    for name in ("/opt/one/program.py", "/srv/another/deep/code.py"):
        found: dict[str, Any] = {}
        exec(compile("def run(variables, images, sizes):\n    return {'boxes': images * 2}", name, "exec"), found)
        monkeypatch.setattr(stablehlo_module, "program", lambda *_, run=found["run"]: run)
        settings = ExportSettings(INPUT, Preprocessing(64, 96, CANVAS))
        export_stablehlo(
            Exportable(config("fpn"), Variables({"w": np.ones(3, np.float32)}, {}), CLASS_NAMES, settings),
            tmp_path / "model.stablehlo",
        )
        written.append((tmp_path / "model.stablehlo").read_bytes())
    assert written[0] == written[1]
    with zipfile.ZipFile(tmp_path / "model.stablehlo") as archive:
        assert {member.date_time[0] for member in archive.infolist()} == {1980}


@pytest.mark.parametrize("suffix", [".stablehlo", ".onnx"])
@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_broken_files_are_named(suffix, content, stablehlo, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(stablehlo.read_bytes()[:5000] if content is None else content)
    with pytest.raises(BrokenFileError, match=f"broken{suffix} is"):
        load(path)


def test_files_of_others_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "later.stablehlo", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"format": "mask-rcnn-jax stablehlo 99"}))
    with pytest.raises(BrokenFileError, match="stablehlo 99"):
        load(tmp_path / "later.stablehlo")
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx does not exist"):
        load(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    "metadata",
    [b"[]", b"null", b"\xff", b"{", {"weights": "many"}, {"weights": None}, {}, {"weights": 1}],
)
def test_what_does_not_describe_a_model_is_named(tmp_path, metadata):
    with zipfile.ZipFile(tmp_path / "broken.stablehlo", "w") as archive:
        text = metadata if isinstance(metadata, bytes) else json.dumps({"format": FORMAT} | metadata)
        archive.writestr("metadata.json", text)
        # An array whose header asks for more than any machine has.
        with archive.open("weights/0.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"shape": (1 << 60,), "fortran_order": False, "descr": "<f4"})
    with pytest.raises(BrokenFileError, match=r"broken\.stablehlo is"):
        load(tmp_path / "broken.stablehlo")


def test_an_export_is_no_larger_than_its_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.stablehlo", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", bytes(1 << 20))
    with pytest.raises(BrokenFileError, match=r"bomb\.stablehlo is compressed"):
        load(tmp_path / "bomb.stablehlo")


def test_images_that_do_not_fit_are_named():
    model = ExportedModel(("a",), (40, 50), 1, {"masks": "probabilities"}, lambda *_: {})
    for image, said in [
        (np.zeros((41, 50, 3), np.uint8), "image 0 is 50 x 41, larger than the model's input 50 x 40"),
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5), np.uint8), r"\(4, 5\), not uint8 RGB"),
    ]:
        with pytest.raises(ValueError, match=said):
            model.detect([image])
    assert model.detect([]) == []


def test_other_poolers_are_exported_as_they_stand():
    """For all platforms and any number of images, where RoIPool is a loop of RoIs or of cells."""
    pooler, batch = RoIPoolConfig(features=("p2", "p3"), canonical_level=2), export.symbolic_shape("batch")[0]
    shapes = [(batch, 16, 16, 8), (batch, 8, 8, 8), (batch, 10, 4)]
    run = jax.jit(lambda p2, p3, rois: pooler.pool({"p2": p2, "p3": p3}, {"p2": 4, "p3": 8}, rois))
    inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    exported = export.export(run, platforms=PLATFORMS)(*inputs)
    rng = np.random.default_rng(0)
    operands = [rng.uniform(0, 64, (3, *shape[1:])).astype(np.float32) for shape in shapes]
    np.testing.assert_array_equal(jax.jit(exported.call)(*operands), run(*operands))
