"""Processes that load data end with the process that started them, and leave Ctrl-C to it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.data.batching.workers import BatchIterator
from tests.data.test_augment import scenes

ROOT = Path(__file__).parents[2]
LOADING = """
import multiprocessing, signal, sys, time
from pathlib import Path
from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.data import CocoConfig, DataConfig, load_coco, train_batches

def command():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none
    config = DataConfig(CocoConfig(sys.argv[1]), (96,), 96, 128, (96, 128), num_workers=1)
    batches = train_batches(load_coco(config.source, "train"), config, 4, 0, range(100_000))
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


class Loader:
    """What `BatchIterator` asks of Grain, with what was called, in which thread and with which signals blocked."""

    def __init__(self, load):
        self.load, self.called, self.closed = load, [], threading.Event()

    def _note(self, name):
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self.called.append((name, threading.current_thread() is threading.main_thread(), blocked))

    def __iter__(self):
        self._note("iter")
        return self

    def get_state(self):
        self._note("get_state")

    def start_prefetch(self):
        self._note("start_prefetch")

    def __next__(self):
        self._note("next")
        return self.load()

    def close(self):
        self._note("close")
        self.closed.set()


class Shared(np.ndarray):
    """An array in a worker's memory, whose destructor is Python code."""

    def __del__(self):
        self.loader._note("del")


@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_library_that_loads_runs_where_ctrl_c_cannot_interrupt_it():
    def load():
        shared = np.zeros(3).view(Shared)
        shared.loader = loader
        return {"images": shared}

    loader = Loader(load)
    batches = BatchIterator(loader, from_workers=True)
    assert np.array_equal(next(batches)["images"], np.zeros(3))
    batches.close()
    names = ["iter", "get_state", "start_prefetch", "next", "del", "close"]
    assert loader.called == [(name, False, True) for name in names]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_comes_out_of_waiting_for_a_batch_and_costs_none(ctrl_c):
    main, interrupted = threading.get_ident(), threading.Event()
    loaded = iter(range(3))

    def load():
        step = next(loaded)
        if step == 1:
            signal.pthread_kill(main, signal.SIGINT)
            interrupted.wait()
        return {"step": np.array(step)}

    batches = BatchIterator(Loader(load), from_workers=False)
    assert next(batches)["step"] == 0
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    interrupted.set()
    assert [batch["step"] for batch in batches] == [1, 2]
    assert list(batches) == []


@pytest.mark.parametrize("failing", ["__iter__", "get_state", "__next__"])
def test_a_failure_is_raised_where_the_batch_is_asked_for(failing, monkeypatch):
    def fail(self):
        raise ValueError("no batch")

    monkeypatch.setattr(Loader, failing, fail)
    batches = BatchIterator(Loader(dict), from_workers=False)
    with pytest.raises(ValueError, match="no batch"):
        next(batches)
    assert list(batches) == []


def test_the_loading_of_a_forgotten_iterator_ends():
    loader = Loader(dict)
    batches = BatchIterator(loader, from_workers=False)
    next(batches)
    del batches
    assert loader.closed.wait(300)
