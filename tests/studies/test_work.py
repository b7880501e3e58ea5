"""Which cells are trained, by whom and when, and what is written of them; nothing is trained here."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask_rcnn_jax.config import override
from mask_rcnn_jax.errors import Stopped, UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.studies import Plan, run_study
from mask_rcnn_jax.studies import work as work_module
from mask_rcnn_jax.training.runs.workdir import claim, locked, read_config
from tests.studies.pretended import ROWS, Pretended, leave_result, small_plan, with_seeds

CELLS = ["base/seed_0", "low/seed_0", "base/seed_1", "low/seed_1"]


@pytest.fixture
def pretended(monkeypatch) -> Pretended:
    return Pretended(monkeypatch)


def work(plan: Plan, folder: Path, *only: str) -> list[str]:
    """What is said while the study is worked on."""
    said: list[str] = []
    run_study(plan, folder, "mine", only, said.append)
    return said


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text())


def finished(folder: Path) -> list[str]:
    return sorted(cell["folder"] for row in report(folder)["cells"].values() for cell in row.values())


def test_every_cell_is_an_ordinary_run_seed_by_seed_and_is_run_once(tmp_path, pretended) -> None:
    plan = small_plan(tmp_path)
    said = work(plan, tmp_path / "out")
    assert pretended.trained == pretended.evaluated == CELLS
    assert said[-1] == f"study: 4 of 4 cells are finished; see {tmp_path / 'out' / 'study.md'}"
    for name, seed in (("base", 0), ("low", 1)):
        config = read_config(tmp_path / "out" / name / f"seed_{seed}")
        assert config is not None
        assert config.seed == seed
        assert config.schedule.learning_rate == {"base": 0.01, "low": 0.001}[name]
    before = (tmp_path / "out" / "study.json").read_bytes()
    work(plan, tmp_path / "out")
    assert len(pretended.trained) == len(pretended.evaluated) == 4
    assert (tmp_path / "out" / "study.json").read_bytes() == before


def test_the_report_grows_with_each_cell(tmp_path, pretended) -> None:
    seen: list[list[str]] = []
    pretended.at_start = lambda cell: seen.append(finished(tmp_path / "out"))
    work(small_plan(tmp_path), tmp_path / "out")
    assert seen == [sorted(CELLS[:count]) for count in range(4)]
    assert finished(tmp_path / "out") == sorted(CELLS)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []


@pytest.mark.parametrize("end", [KeyboardInterrupt, Stopped])
def test_a_study_that_was_ended_goes_on_with_the_cell_that_it_was_at(tmp_path, pretended, end) -> None:
    def ends(cell: str) -> None:
        if cell == "base/seed_1":
            raise end

    plan, pretended.at_start = small_plan(tmp_path), ends
    with pytest.raises(end):
        work(plan, tmp_path / "out")
    assert pretended.trained == CELLS[:2]
    pretended.at_start = lambda cell: None
    work(plan, tmp_path / "out")
    assert pretended.trained == CELLS


def test_what_was_trained_and_not_evaluated_is_not_trained_again(tmp_path, pretended) -> None:
    def ends(cell: str) -> None:
        raise KeyboardInterrupt

    plan, pretended.at_evaluation = with_seeds(small_plan(tmp_path), 0), ends
    with pytest.raises(KeyboardInterrupt):
        work(plan, tmp_path / "out")
    assert (pretended.trained, pretended.evaluated, finished(tmp_path / "out")) == (CELLS[:1], [], [])
    pretended.at_evaluation = lambda cell: None
    work(plan, tmp_path / "out")
    assert pretended.trained == pretended.evaluated == CELLS[:2]


@pytest.mark.parametrize("lock", [".study-lock", ".lock"])
def test_a_cell_that_another_process_has_is_passed_over(tmp_path, pretended, lock) -> None:
    """The first of a process of this study, the second of a `mask-rcnn train` in its folder."""
    plan = small_plan(tmp_path)
    with locked(tmp_path / "out" / "low" / "seed_0", lock):
        said = work(plan, tmp_path / "out")
        assert "study: low/seed_0 is passed over, another process has it" in said
        assert said[-1].startswith("study: 3 of 4 cells are finished")
    assert pretended.trained == ["base/seed_0", "base/seed_1", "low/seed_1"]
    work(plan, tmp_path / "out")
    assert pretended.trained[3:] == ["low/seed_0"]


def test_the_lock_of_a_process_that_was_killed_is_taken(tmp_path, pretended) -> None:
    cell = tmp_path / "out" / "base" / "seed_0"
    cell.mkdir(parents=True)
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX);"
        " print(1, flush=True); time.sleep(600)"
    )
    plan = with_seeds(small_plan(tmp_path), 0)
    other = subprocess.Popen([sys.executable, "-c", code, str(cell / ".study-lock")], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        work(plan, tmp_path / "out")
        assert pretended.trained == ["low/seed_0"]
    finally:
        other.kill()
        other.communicate()
    work(plan, tmp_path / "out")
    assert pretended.trained == ["low/seed_0", "base/seed_0"]


def test_a_cell_that_was_given_up_meanwhile_is_taken(tmp_path, pretended) -> None:
    lock = locked(tmp_path / "out" / "base" / "seed_0", ".study-lock")
    lock.__enter__()
    pretended.at_start = lambda cell: lock.__exit__(None, None, None) if cell == "low/seed_1" else None
    work(small_plan(tmp_path), tmp_path / "out")
    assert pretended.trained == [*CELLS[1:], "base/seed_0"]


def test_two_at_one_study_take_different_cells(tmp_path, pretended, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # scoring redirects it, one thread while another does
    plan, begun = with_seeds(small_plan(tmp_path), *range(6)), set[int]()
    both = threading.Barrier(2)

    def starts(cell: str) -> None:
        if threading.get_ident() not in begun:
            begun.add(threading.get_ident())
            both.wait(timeout=60)  # neither goes on before the other has a cell

    pretended.at_start = starts
    threads = [threading.Thread(target=work, args=(plan, tmp_path / "out")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    cells = sorted(f"{row}/seed_{seed}" for row in ROWS for seed in range(6))
    assert sorted(pretended.trained) == sorted(pretended.evaluated) == finished(tmp_path / "out") == cells


def test_rows_can_be_trained_alone(tmp_path, pretended) -> None:
    plan = small_plan(tmp_path)
    said = work(plan, tmp_path / "out", "low")
    assert pretended.trained == ["low/seed_0", "low/seed_1"]
    assert said[-1].startswith("study: 2 of 2 cells are finished")
    with pytest.raises(UserError, match="--rows: there is no row lower; there are base, low"):
        work(plan, tmp_path / "out", "lower")


def test_a_cell_that_fails_keeps_no_other_from_its_turn(tmp_path, pretended) -> None:
    def fails(cell: str) -> None:
        if cell == "low/seed_0":
            raise UserError("the loss is not finite")

    plan, pretended.at_start = small_plan(tmp_path), fails
    with pytest.raises(UserError, match=r"1 cells failed.* tries again, e\.g\. low/seed_0: the loss is not finite"):
        work(plan, tmp_path / "out")
    assert pretended.trained == ["base/seed_0", "base/seed_1", "low/seed_1"]
    assert finished(tmp_path / "out") == sorted(pretended.trained)


def test_a_run_that_came_to_another_end_since_is_evaluated_again(tmp_path, pretended) -> None:
    plan = with_seeds(small_plan(tmp_path), 0)
    work(plan, tmp_path / "out")
    leave_result(tmp_path / "out" / "base" / "seed_0", 4, "others")
    work(plan, tmp_path / "out")
    assert pretended.trained == CELLS[:2]
    assert pretended.evaluated == [*CELLS[:2], "base/seed_0"]
    assert report(tmp_path / "out")["cells"]["base"]["0"]["result"]["parameters"] == "others"


@pytest.mark.parametrize("name", ["outcome", "resamples", "detections"])
def test_what_cannot_be_read_is_made_again(tmp_path, pretended, name) -> None:
    plan = with_seeds(small_plan(tmp_path), 0)
    work(plan, tmp_path / "out")
    before = report(tmp_path / "out")
    (tmp_path / "out" / "base" / "seed_0" / "study" / f"{name}.json").write_text("{")
    work(plan, tmp_path / "out")
    assert report(tmp_path / "out") == before
    assert pretended.trained == CELLS[:2]
    assert pretended.evaluated == [*CELLS[:2], *(["base/seed_0"] if name == "outcome" else [])]


def test_other_draws_need_no_other_evaluation(tmp_path, pretended) -> None:
    plan = small_plan(tmp_path)
    work(plan, tmp_path / "out")
    (before,) = report(tmp_path / "out")["comparisons"]
    work(replace(plan, bootstrap_seed=1), tmp_path / "out")
    (other,) = report(tmp_path / "out")["comparisons"]
    assert other["interval"] != before["interval"]
    work(plan, tmp_path / "out")
    assert report(tmp_path / "out")["comparisons"] == [before]
    work(replace(plan, resamples=0), tmp_path / "out")
    assert report(tmp_path / "out")["comparisons"] == [before | {"interval": None}]
    assert len(pretended.evaluated) == 4


def test_seeds_and_rows_can_be_added(tmp_path, pretended) -> None:
    small = with_seeds(small_plan(tmp_path), 0)
    large = small_plan(tmp_path, ROWS | {"lower": {"schedule.learning_rate": 1e-4}})
    work(small, tmp_path / "out")
    work(large, tmp_path / "out")
    assert len(pretended.trained) == 6
    # The one that knows less leaves the report to the other.
    with pytest.raises(UserError, match="row lower is there and not in the file; seed 1 is there and not in the file"):
        work(small, tmp_path / "out")


def test_a_report_of_a_study_that_has_grown_since_is_left_alone(tmp_path, pretended) -> None:
    small, large = (small_plan(tmp_path, seeds=seeds) for seeds in ((0,), (0, 1)))
    pretended.at_start = lambda cell: pretended.trained or grow()

    def grow() -> None:
        pretended.trained.append("grown")
        work(large, tmp_path / "out", "low")

    said = work(small, tmp_path / "out")
    assert any(line.startswith("study: no report is written: ") and "seed 1 is there" in line for line in said)
    assert [row["name"] for row in report(tmp_path / "out")["plan"]["rows"]] == ["base", "low"]
    assert report(tmp_path / "out")["plan"]["seeds"] == [0, 1]


def test_the_folder_of_another_study_is_refused(tmp_path, pretended) -> None:
    plan = small_plan(tmp_path)
    work(plan, tmp_path / "out")
    before = (tmp_path / "out" / "study.json").read_bytes()
    changed = small_plan(tmp_path, ROWS | {"low": {"schedule.learning_rate": 0.002}})
    with pytest.raises(UserError, match=r"holds another study \(row low, schedule\.learning_rate: 0\.001 != 0\.002\)"):
        work(changed, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds another study \(checkpoint: 'latest' != 'best'\)"):
        work(replace(plan, checkpoint="best"), tmp_path / "out")
    assert (tmp_path / "out" / "study.json").read_bytes() == before
    # What decides no result may differ.
    rows = tuple(replace(row, config=override(row.config, ["data.num_workers=2"])) for row in plan.rows)
    work(replace(plan, rows=rows), tmp_path / "out")
    assert len(pretended.trained) == 4
    for text in ("{", "[]", '{"plan": 5}', '{"plan": {"type": "Plan"}}'):
        (tmp_path / "out" / "study.json").write_text(text)
        with pytest.raises(UserError, match=r"study\.json is no report of a study of this version"):
            work(plan, tmp_path / "out")


def test_what_is_wrong_with_a_place_or_a_row_is_said_before_anything_is_trained(tmp_path, pretended) -> None:
    plan = small_plan(tmp_path)
    for item in ("model", "metadata"):
        (tmp_path / "run" / "checkpoints" / "2" / item).mkdir(parents=True)
    with pytest.raises(UserError, match=r"--workdir .* belongs to a run's checkpoints"):
        work(plan, tmp_path / "run" / "checkpoints" / "study")
    with pytest.raises(UserError, match="row odd: batch_size=7 cannot be shared"):
        work(small_plan(tmp_path, {"base": {}, "odd": {"batch_size": 7}}), tmp_path / "out")
    other = tmp_path / "out" / "low" / "seed_1"
    claim(other, override(plan.rows[1].config, ["steps=9"]))
    (other / "metrics.jsonl").write_text("{}\n")
    for only in ((), ("base",)):
        with pytest.raises(UserError, match=r"out/low/seed_1 holds a run with another configuration \(steps: 9 != 4"):
            work(plan, tmp_path / "out", *only)
    assert pretended.trained == []
    assert not (tmp_path / "out" / "study.json").exists()


def test_without_matplotlib_all_but_the_picture_is_written(tmp_path, pretended, monkeypatch) -> None:
    monkeypatch.setattr(work_module, "require", require)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = work(small_plan(tmp_path), tmp_path / "out")
    assert any(line.startswith(f"{tmp_path / 'out' / 'study.png'} needs the package matplotlib") for line in said)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["base", "low", "study.json", "study.md"]
