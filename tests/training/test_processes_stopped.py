"""A signal to one of two real processes."""

import os
import signal
import time

import pytest

from tests.training.two_processes import finish, metrics, start, train_options


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    started = start(["train.py", *train_options(tmp_path, "stopped", "smallest_model", steps=2000)], tmp_path)
    path, limit = tmp_path / "stopped" / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and path.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.2)
    started[1].send_signal(signal.SIGTERM)
    assert finish(started, tmp_path) == [os.EX_TEMPFAIL] * 2, (tmp_path / "output0.txt").read_text()
    last = metrics(tmp_path / "stopped")[-1]["step"]
    assert (tmp_path / "stopped" / "checkpoints" / str(last)).is_dir()
