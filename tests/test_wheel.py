"""The wheel: what it holds, and that it does what the README says where nothing else of the project is."""

import configparser
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mask_rcnn_jax import __version__

ROOT = Path(__file__).parent.parent


def build(out: Path) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling, the extra `dev`")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_it_holds_the_package_its_configs_and_its_licence(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if "/__pycache__/" not in name}
        about = f"mask_rcnn_jax-{__version__}.dist-info"
        metadata = wheel.read(f"{about}/METADATA").decode()
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(f"{about}/entry_points.txt").decode())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "mask_rcnn_jax").rglob("*.py")}
    configs = {f"mask_rcnn_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    others = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    licences = {f"{about}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    assert names == package | configs | others | licences | {"mask_rcnn_jax/py.typed"}
    assert "License-Expression: Apache-2.0" in metadata
    assert dict(scripts["console_scripts"]) == {"mask-rcnn": "mask_rcnn_jax.cli.main:entry"}


def test_constraints_name_versions_and_hashes_but_no_index() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "index" not in text
    pinned = re.findall(
        r"^([a-z0-9-]+)==\S+(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert len(pinned) == len(re.findall(r"^\S", text, re.M))
    metadata = (ROOT / "pyproject.toml").read_text()
    needed = set(re.findall(r'^    "([\w-]+)[>\[]', metadata, re.M)) - {"mask-rcnn-jax"}
    assert {name.lower() for name in needed} <= {name for name, _ in pinned}


SMALL = "steps=4 checkpoint_every=2 eval_every=0 data.source.num_train=8 data.source.num_val=4 schedule.warmup_steps=1"


@pytest.mark.slow
def test_installed_alone_it_trains_evaluates_predicts_and_exports(tmp_path: Path) -> None:
    wheel, environment, elsewhere = build(tmp_path / "wheel"), tmp_path / "environment", tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    elsewhere.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def mask_rcnn(*arguments: str) -> str:
        command = [str(environment / "bin" / "mask-rcnn"), *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=outside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    trained = mask_rcnn("train", "--config", "shapes", "--workdir", "run", "--set", *SMALL.split())
    assert "curves.png needs the package matplotlib" in trained
    mask_rcnn("eval", "--workdir", "run", "--pictures", "1")
    assert (elsewhere / "run" / "eval" / "metrics.json").is_file()
    images = str(next(elsewhere.glob("data/*/val")))
    mask_rcnn("predict", images, "--checkpoint", "run", "--out", "found", "--score-threshold", "0")
    assert list((elsewhere / "found" / "overlays").iterdir())
    mask_rcnn("export", "--checkpoint", "run", "--out", "model.stablehlo")
    assert (elsewhere / "model.stablehlo").stat().st_size > 1_000_000
