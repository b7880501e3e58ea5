"""`mask-rcnn study` with real runs of four steps."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.evaluation.coco import score_coco
from mask_rcnn_jax.studies import load_plan
from mask_rcnn_jax.training.runs.workdir import locked

ROOT = Path(__file__).parents[2]
FILE = """
from pathlib import Path
from mask_rcnn_jax.studies import Study
from tests.tiny import smallest_model, tiny_experiment

def get_study():
    config = tiny_experiment(Path(__file__).parent, model=smallest_model())
    return Study(config, {"base": {}, "again": {}}, seeds=(0, 1), equalities=[("base", "again")], resamples=20)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def check_report(out: Path) -> None:
    """The report of the study above, all of whose runs are finished, against what the runs themselves have told."""
    report: dict[str, Any] = json.loads((out / "study.json").read_text())
    for row in ("base", "again"):
        assert list(report["cells"][row]) == ["0", "1"]
        for cell in report["cells"][row].values():
            *_, last = map(json.loads, (out / cell["folder"] / "metrics.jsonl").read_text().splitlines())
            assert cell["step"] == last.pop("step") == 4
            assert cell["metrics"] == last
            assert cell["result"] == json.loads((out / cell["folder"] / "result.json").read_text())
    (equality,) = report["equalities"]
    assert [seed["verdict"] for seed in equality["seeds"].values()] == ["equal", "equal"]
    (comparison,) = report["comparisons"]
    assert (comparison["difference"], comparison["interval"]) == (0.0, [0.0, 0.0])
    of_seeds = [cell["result"]["parameters"] for cell in report["cells"]["base"].values()]
    assert of_seeds[0] != of_seeds[1]
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_is_trained_evaluated_and_goes_on(file, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["study", str(file), "--workdir", str(out)]
    with locked(out / "again" / "seed_1"):
        assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "study: again/seed_1 is passed over, another process has it" in said
    assert said.splitlines()[-1] == f"study: 3 of 4 cells are finished; see {out / 'study.md'}"
    assert main([*arguments, "--rows", "again"]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("study: ")] == [
        "study: again/seed_1",
        "study: again/seed_1: its 4 images are drawn 20 times",
        f"study: 2 of 2 cells are finished; see {out / 'study.md'}",
    ]
    check_report(out)
    # Detections are kept as COCO results that have the metrics.
    (config,) = (row.config for row in load_plan(file).rows if row.name == "base")
    images = config.data.source.load("val")
    found = json.loads((out / "base" / "seed_1" / "study" / "detections.json").read_text())
    told = json.loads((out / "study.json").read_text())["cells"]["base"]["1"]["metrics"]
    scored = score_coco(images, found, "bbox", EvaluationConfig())
    assert {name: value for name, value in scored.items() if value == value} == {
        name: value for name, value in told.items() if value is not None
    }


def test_a_cell_is_repeated_by_the_command_in_the_text(file, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    file.write_text(FILE.replace("seeds=(0, 1)", "seeds=(3,)").replace('"again": {}', '"low": {"steps": 2}'))
    file.write_text(file.read_text().replace('equalities=[("base", "again")], ', ""))
    assert main(["study", str(file), "--workdir", str(out), "--rows", "low"]) == 0
    (line,) = (line for line in (out / "study.md").read_text().splitlines() if "mask-rcnn reproduce" in line)
    assert main(line.split()[1:]) == 0
    assert "is reproduced: the same bits" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_share_a_study(file, tmp_path) -> None:
    """Beside what pretended runs show of threads."""
    out = tmp_path / "out"
    code = "from mask_rcnn_jax.cli.main import entry; entry()"
    command = [sys.executable, "-c", code, "study", str(file), "--workdir", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=600)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert all("goes on from step" not in text for text in said)
    for cell in ("base/seed_0", "base/seed_1", "again/seed_0", "again/seed_1"):
        assert len((out / cell / "starts.jsonl").read_text().splitlines()) == 1, said
        assert sum(text.count(f"the run is in {out / cell}") for text in said) == 1
    check_report(out)
