"""Traces, memory and times of a run."""

import gzip
import json

import pytest

from mask_rcnn_jax.cli.runs.train import main
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training import train
from mask_rcnn_jax.training.reporting.profiling import ProfileSteps, Stopwatch, memory_in_use
from tests.tiny import smallest_model, tiny_experiment


@pytest.mark.parametrize(
    ("text", "start", "end", "steps"),
    [("3:5", 0, 10, (3, 5)), ("3:3", 2, 10, (3, 3)), ("8:99", 0, 10, (8, 10)), (None, 0, 100, (5, 7)),
     (None, 40, 100, (45, 47)), (None, 0, 6, (5, 6)), (None, 0, 2, (2, 2))],
)  # fmt: skip
def test_which_steps_are_traced(text, start, end, steps):
    chosen = ProfileSteps() if text is None else ProfileSteps.parse(text)
    assert chosen.of_run(start, end) == steps


@pytest.mark.parametrize("text", ["3", "0:2", "5:3", "a:b", "1:2:3", ":", "-1:4"])
def test_what_names_no_steps_is_refused(text, capsys):
    with pytest.raises(SystemExit) as exit:
        main([f"--profile={text}"])
    assert exit.value.code == 2
    assert f"{text!r} is not START:STOP, for example 100:105" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "start"), [("3:5", 3), ("11:12", 0)])
def test_steps_that_a_run_does_not_come_to_are_refused(text, start):
    with pytest.raises(UserError, match=rf"--profile {text} names no step of {start + 1} to 10"):
        ProfileSteps.parse(text).of_run(start, 10)


def test_times_are_kept_by_what_they_were_spent_on():
    now = 0.0
    watch = Stopwatch(lambda: now)
    with watch.of("data_wait"):
        now = 2.0
    with watch.of("checkpoint"):
        now = 3.0
    now = 10.0
    assert watch.take(10.0) == {"time/data_wait": 2.0, "time/checkpoint": 1.0, "time/steps": 7.0}
    with watch.of("evaluation"):
        now = 15.0
    with watch.of("data_wait"):
        now = 16.0
    now = 20.0
    assert watch.take(5.0) == {"time/evaluation": 5.0, "time/data_wait": 1.0, "time/steps": 4.0}
    assert watch.describe() == (
        "time: steps 11.0 s (55%), evaluation 5.0 s (25%), data_wait 3.0 s (15%), checkpoint 1.0 s (5%),"
        " the rest 0.0 s (0%)"
    )


def test_the_memory_of_this_process_counts():
    before = memory_in_use()["memory/host_gib"]
    held = bytearray(b"x" * 2**28)
    assert memory_in_use()["memory/host_gib"] - before == pytest.approx(0.25, abs=0.1)
    del held


def test_a_run_is_traced_and_its_costs_are_recorded(tmp_path, capsys):
    config = tiny_experiment(tmp_path, model=smallest_model())
    train(config, tmp_path / "run", ProfileSteps(2, 3))
    said = capsys.readouterr().out
    assert "a step needs 0.0" in said
    assert "traced steps 2 to 3: drop the newest *.trace.json.gz" in said
    assert "time: " in said
    (trace,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train" and "args" in event}
    assert steps == {"2", "3"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert all({"time/steps", "time/data_wait", "memory/host_gib"} <= line.keys() for line in trained)
    assert all(line["memory/host_gib"] > 0.1 for line in trained)
    assert all(0 <= line["data_wait"] <= 1 for line in trained)
    assert "time/checkpoint" in trained[2]  # saved after step 2
    for kind in ("anchors", "rois"):
        by_level = [v for name, v in trained[0].items() if name.startswith(f"histogram/{kind}_by_level/")]
        assert sum(by_level) > 0
    by_iou = [v for name, v in trained[0].items() if name.startswith("histogram/anchors_by_iou/")]
    assert len(by_iou) == 10
    assert sum(by_iou) == pytest.approx(trained[0]["rpn/foreground_anchors"], rel=1e-5)
    assert (tmp_path / "run" / "curves.png").exists()
