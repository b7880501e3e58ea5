"""`kill -9` at any moment: the run goes on, and ends like one that nobody killed, bit for bit."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from tests.faults.harness import (
    PATIENCE,
    Run,
    assert_same_end,
    finished_steps,
    is_writing_checkpoint,
    metrics,
    write_settings,
)
from tests.tiny import smallest_model, tiny_experiment

_MARK = "MASK_RCNN_TEST_RUN"  # in the environment of all processes of a run


def survive(tmp_path: Path, steps: int, kills: int, workers: int = 0) -> list[str]:
    """Kills a run so often, at moments drawn from a seed; returns what it was doing each time."""
    config = tiny_experiment(tmp_path, model=smallest_model(), steps=steps, checkpoint_every=1, eval_every=steps // 2)
    config = replace(config, data=replace(config.data, num_workers=workers))
    settings, rng, told = write_settings(config, tmp_path), np.random.default_rng(kills), []
    # Not at the same time: what it compiles the others need not.
    whole, workdir = Run(settings, tmp_path / "whole"), tmp_path / "killed"
    assert whole.wait() == 0, whole.output()
    for kill in range(kills):
        before, mark, since = max(finished_steps(workdir), default=0), uuid4().hex, time.time()
        run = Run(settings, workdir, **{_MARK: mark})
        moment = ("a step", "a checkpoint", "the start")[kill % 3 if kills > 2 else kill]
        happened = run.until(_reached(moment, workdir, before, since))
        assert happened, run.output()
        time.sleep(rng.uniform(0, {"a step": 0.3, "a checkpoint": 0.03, "the start": 8.0}[moment]))
        writing, processes = is_writing_checkpoint(workdir, since), len(_processes(mark))
        assert run.stop(signal.SIGKILL) == -signal.SIGKILL
        told.append(
            f"{moment}, step {max(finished_steps(workdir), default=0)}, {processes} processes"
            f"{', checkpoint half written' * writing}"
        )
        print(told[-1], flush=True)
        # No more is lost than what came after the last whole checkpoint.
        assert max(finished_steps(workdir), default=0) >= before
        _wait_until_gone(mark)
    before = max(finished_steps(workdir))
    last = Run(settings, workdir)
    assert last.wait() == 0, last.output()
    assert f"goes on from step {before} " in last.output() or before == steps
    assert [line["step"] for line in metrics(tmp_path / "whole")][-1] == steps
    assert_same_end(tmp_path / "whole", workdir, steps)
    return told


def _reached(moment: str, workdir: Path, before: int, since: float) -> Callable[[], bool]:
    def reached() -> bool:
        if moment == "the start":
            return True
        # Each start gets on by a step at least, or the run would never end.
        advanced = max(finished_steps(workdir), default=0) > before
        return advanced and (moment == "a step" or is_writing_checkpoint(workdir, since))

    return reached


def _processes(mark: str) -> list[int]:
    """The processes with this mark in their environment, which loading processes have from the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{_MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended
    return found


def _wait_until_gone(mark: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := _processes(mark):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def test_a_run_survives_two_kills(tmp_path):
    told = survive(tmp_path, steps=10, kills=2)
    assert len(told) == 2


@pytest.mark.slow
def test_a_run_survives_a_hundred_kills(tmp_path):
    shared = set(os.listdir("/dev/shm"))
    told = survive(tmp_path, steps=400, kills=100, workers=2)
    assert sum("half written" in line for line in told) >= 10
    # The run itself, both processes that load, and Python's tracker of shared memory.
    assert sum("4 processes" in line for line in told) >= 10
    assert set(os.listdir("/dev/shm")) <= shared
