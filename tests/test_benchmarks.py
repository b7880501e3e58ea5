"""The benchmarks run, on little."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import needed
from tests.data.test_augment import scenes

ROOT = Path(__file__).parent.parent


def run(name, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_data_benchmark(tmp_path):
    root = scenes(tmp_path / "data").annotation_file.parents[1]
    output = run("data", "--data", root, "--quick", "--json", tmp_path / "data.json")
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["machine"]["cores"] >= 1
    rows = [row for row in content["rows"] if row["loader"] == "mask_rcnn_jax"]
    assert [row["recipe"] for row in rows] == ["800/1333", "LSJ 1024"]
    for row in rows:
        speed = row["images_per_second"]
        assert speed.keys() == {"read", "decode", "resize, flip", "masks", "pad", "transfer", "total"}
        assert min(speed.values()) > 0
        assert f"| {row['recipe']} | mask_rcnn_jax |" in output


def peers(tmp_path, names, *arguments):
    """The rows of the comparison with torchvision, which first sees to it that the results agree."""
    needed.torchvision()
    file = tmp_path / "peers.json"
    output = run("peers", "--quick", "--json", file, *arguments, "--only", *names)
    content = json.loads(file.read_text())
    assert content["machine"]["torchvision"] != "none"
    for row in content["rows"]:
        assert f"| {row['name']} |" in output
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        assert min(row["seconds"].values()) > 0
    return {row["name"]: row for row in content["rows"]}


@pytest.mark.slow
def test_stages_beside_torchvision(tmp_path):
    names = ("RPN and proposals", "100x14x14, forward", "NMS, 1000", "sampling of RoIs", "paste", "COCO")
    rows = peers(tmp_path, names, "--processes", 1)
    assert len(rows) == 7
    assert rows["RPN and proposals"]["seconds"].keys() == {"ours", "contiguous", "channels last"}


@pytest.mark.slow
def test_whole_inference_and_a_training_step_beside_torchvision(tmp_path):
    rows = peers(tmp_path, ("v1, 512", "128 foreground"), "--processes", 2)
    assert {len(row["ratios"]) for row in rows.values()} == {2}


@pytest.mark.slow
def test_exports_beside_torchvisions(tmp_path):
    needed.torchvision()
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "exported.json"
    run("exported", "--quick", "--processes", 1, "--only", "ONNX Runtime", "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["seconds"].keys() == {"ours", "torchvision"}


@pytest.mark.slow
def test_bfloat16_beside_torchvision(tmp_path):
    needed.torchvision()
    file = tmp_path / "accelerator.json"
    run("accelerator", "--quick", "--training-batches", 3, "--inference-batches", 2, "--json", file)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["kind"], row["batch"]) for row in rows] == [("training", 3), ("inference", 2)]
    assert rows[0]["flop"] > 2 * rows[1]["flop"] > 0


@pytest.mark.slow
def test_files_beside_torchvision(shared, tmp_path):
    """Which first sees to it that both find as many instances."""
    needed.torchvision()
    file = tmp_path / "files.json"
    run("files", "--quick", "--data", shared / "data" / "coco_mini", "--images", 4, "--versions", "v1", "--json", file)
    several, one = json.loads(file.read_text())["rows"]
    assert several["name"].startswith("v1, several canvases, 1.")
    assert one["name"].startswith("v1, one canvas, 1.")
    assert several["name"].split()[-4] < one["name"].split()[-4]
    assert several["seconds"].keys() == one["seconds"].keys() == {"ours", "contiguous", "channels last"}
    assert several["seconds"]["contiguous"] == one["seconds"]["contiguous"] > 0


@pytest.mark.slow
def test_throughput(tmp_path):
    file = tmp_path / "throughput.json"
    run("throughput", "--quick", "--sizes", "64x64", "--batches", 2, "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["instances"] > 0
    assert row["rate"] > 0
    assert row["peak"] > 100


@pytest.mark.slow
def test_compile_time(tmp_path):
    file = tmp_path / "compile_time.json"
    run("compile_time", "--quick", "--json", file)
    rows = json.loads(file.read_text())["rows"]
    assert rows["from the cache"]["compile"] < rows["empty cache"]["compile"]


@pytest.mark.slow
def test_curves(tmp_path):
    file = tmp_path / "curves.json"
    run("curves", "--only", "devices", "detection", "--calls", 1, "--json", file)
    rows = json.loads(file.read_text())["rows"]
    assert {row["curve"] for row in rows} == {"virtual devices", "proposals, detection"}
    assert all(row["growth"] == 1 for row in rows if row["value"] in (1, 250))
