"""Real processes over a longer time: stopped by SIGTERM again and again, and 2,000 steps without growth."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.harness import Run, assert_same_end, finished_steps, write_settings
from tests.tiny import smallest_model, tiny_experiment

STEPS = 2000


@pytest.mark.slow
def test_a_run_survives_preemption(tmp_path):
    config = tiny_experiment(tmp_path, model=smallest_model(), steps=12, checkpoint_every=5)
    settings = write_settings(config, tmp_path)
    whole, workdir = Run(settings, tmp_path / "whole"), tmp_path / "stopped"
    assert whole.wait() == 0, whole.output()
    for number in (1, 2):
        before = last_step(workdir)
        run = Run(settings, workdir)
        assert run.until(lambda before=before: last_step(workdir) > before), run.output()
        assert run.stop(signal.SIGTERM) == os.EX_TEMPFAIL, run.output()
        assert "by a signal, after a checkpoint" in run.output()
        # Nothing is lost: the checkpoint is of the last step that was reported.
        assert finished_steps(workdir)[-1] == last_step(workdir) >= number
    last = Run(settings, workdir)
    assert last.wait() == 0, last.output()
    assert_same_end(tmp_path / "whole", workdir, 12)


def last_step(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_two_thousand_steps_leave_nothing_behind(tmp_path):
    """Memory and open files at the end are those after a quarter of the steps."""
    config = tiny_experiment(tmp_path, steps=STEPS, checkpoint_every=100, eval_every=250, log_every=10)
    run, seen = Run(write_settings(config, tmp_path), tmp_path / "run"), []

    def measured_at(step: int) -> bool:
        if last_logged(run.workdir) < step:
            return False
        seen.append((last_logged(run.workdir), resident(run.process.pid), open_files(run.process.pid)))
        return True

    for step in range(STEPS // 4, STEPS, STEPS // 10):
        assert run.until(lambda step=step: measured_at(step)), run.output()
    assert run.wait() == 0, run.output()
    for step, memory, files in seen:
        print(f"step {step}: {memory / 2**20:.1f} MiB resident, {files} open files")
    (_, memory, files), (_, memory_at_end, files_at_end) = seen[0], seen[-1]
    assert memory_at_end < 1.05 * memory
    assert files_at_end <= files + 5  # a checkpoint that is being written has some open


def last_logged(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b'"learning_rate"') * 10 if file.exists() else 0


def resident(pid: int) -> int:
    """Bytes of memory that the process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
