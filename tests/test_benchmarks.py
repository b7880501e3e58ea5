"""The benchmarks run, on little."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.data.test_augment import scenes

ROOT = Path(__file__).parent.parent


def run(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_data_benchmark(tmp_path):
    root = scenes(tmp_path / "data").annotation_file.parents[1]
    output = run("data.py", "--data", root, "--quick", "--json", tmp_path / "data.json")
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["machine"]["cores"] >= 1
    rows = [row for row in content["rows"] if row["loader"] == "mask_rcnn_jax"]
    assert [row["recipe"] for row in rows] == ["800/1333", "LSJ 1024"]
    for row in rows:
        speed = row["images_per_second"]
        assert speed.keys() == {"read", "decode", "resize, flip", "masks", "pad", "transfer", "total"}
        assert min(speed.values()) > 0
        assert f"| {row['recipe']} | mask_rcnn_jax |" in output
