"""Processes that load data end with the process that started them, and leave Ctrl-C to it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mask_rcnn_jax.data.pipeline import BatchIterator
from tests.data.test_augment import scenes

ROOT = Path(__file__).parents[2]
LOADING = """
import multiprocessing, sys, time
from pathlib import Path
from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.data import CocoConfig, DataConfig, load_coco, train_batches

def command():
    config = DataConfig(CocoConfig(sys.argv[1]), (96,), 96, 128, (96, 128), num_workers=1)
    batches = train_batches(load_coco(config.source, "train"), config, 4, 0, 0, 100_000)
    next(batches)
    (worker,) = multiprocessing.active_children()
    maps = Path(f"/proc/{worker.pid}/maps")
    mapped = {line.split()[5] for line in maps.open() if "/dev/shm/" in line} if maps.exists() else ()
    print("loading", *mapped, flush=True)
    time.sleep(600)  # while the worker loads ahead

if __name__ == "__main__":
    sys.exit(run(command))
"""


@pytest.fixture
def loading(tmp_path):
    """A process that loads data with a worker, and the shared memory that it had at its first batch."""
    dataset = scenes(tmp_path / "data")
    (tmp_path / "tmp").mkdir()
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    process = subprocess.Popen(
        [sys.executable, str(script), str(dataset.annotation_file.parents[1])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        said, *segments = process.stdout.readline().split() or [""]
        assert said == "loading", process.communicate(timeout=300)
        yield process, segments
    finally:
        process.kill()
        process.communicate(timeout=300)


def test_nothing_is_left_after_kill_9(loading, tmp_path):
    process, segments = loading
    process.kill()
    process.communicate(timeout=300)  # the end of the output: every process that could write to it has ended
    assert not [segment for segment in segments if Path(segment).exists()]
    assert not list((tmp_path / "tmp").iterdir())


def test_ctrl_c_ends_all_without_a_traceback(loading):
    process, _ = loading
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[0] == "interrupted"
    assert "Traceback" not in errors


def test_processes_are_started_with_ctrl_c_blocked():
    blocked = []

    class Iterator:
        def get_state(self):
            return {}

        def start_prefetch(self):
            blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

        def close(self):
            blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

    BatchIterator(Iterator(), from_workers=True).close()
    assert blocked == [True, False]
