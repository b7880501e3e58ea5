"""`kill -9` at any moment: the run goes on, and ends like one that nobody killed, bit for bit."""

import signal
import time

import numpy as np
import pytest

from tests.faults.harness import (
    Run,
    assert_same_end,
    finished_steps,
    is_writing_checkpoint,
    metrics,
    write_settings,
)
from tests.tiny import tiny_experiment


def survive(tmp_path, steps: int, kills: int) -> list[str]:
    """Kills a run so often, at moments drawn from a seed; returns what it was doing each time."""
    config = tiny_experiment(tmp_path, steps=steps, checkpoint_every=1, eval_every=steps // 2)
    settings, rng, told = write_settings(config, tmp_path), np.random.default_rng(kills), []
    # Not at the same time: what it compiles the others need not.
    whole, workdir = Run(settings, tmp_path / "whole"), tmp_path / "killed"
    assert whole.wait() == 0, whole.output()
    for kill in range(kills):
        before = max(finished_steps(workdir), default=0)
        run = Run(settings, workdir)
        moment = ("a step", "a checkpoint", "the start")[kill % 3 if kills > 2 else kill]

        def reached(run=run, moment=moment, before=before) -> bool:
            if moment == "the start":
                return True
            # Each start gets on by a step at least, or the run would never end.
            advanced = max(finished_steps(workdir), default=0) > before
            return advanced and (moment == "a step" or is_writing_checkpoint(workdir))

        happened = run.until(reached)
        assert happened, run.output()
        time.sleep(rng.uniform(0, {"a step": 0.3, "a checkpoint": 0.03, "the start": 8.0}[moment]))
        writing = is_writing_checkpoint(workdir)
        assert run.stop(signal.SIGKILL) == -signal.SIGKILL
        told.append(f"{moment}, step {max(finished_steps(workdir), default=0)}{', checkpoint half written' * writing}")
        # No more is lost than what came after the last whole checkpoint.
        assert max(finished_steps(workdir), default=0) >= before
        print(told[-1], flush=True)
    before = max(finished_steps(workdir))
    last = Run(settings, workdir)
    assert last.wait() == 0, last.output()
    assert f"goes on from step {before} " in last.output() or before == steps
    assert [line["step"] for line in metrics(tmp_path / "whole")][-1] == steps
    assert_same_end(tmp_path / "whole", workdir, steps)
    return told


def test_a_run_survives_two_kills(tmp_path):
    told = survive(tmp_path, steps=10, kills=2)
    assert len(told) == 2


@pytest.mark.slow
def test_a_run_survives_twenty_kills(tmp_path):
    told = survive(tmp_path, steps=60, kills=20)
    assert sum("half written" in line for line in told) >= 3
