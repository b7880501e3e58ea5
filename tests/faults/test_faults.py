"""Stops, damage and full disks: each is answered in one sentence, and the run then goes on to the same bits."""

import json
import os
import resource
import shutil
import signal
import subprocess
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest

from mask_rcnn_jax.cli.runs.train import main
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training import loop
from mask_rcnn_jax.training.runs.workdir import locked
from mask_rcnn_jax.training.window import Window
from tests.faults.harness import Run, assert_same_end, finished_steps, metrics, write_settings
from tests.tiny import smallest_model, tiny_experiment

STEPS = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    config = tiny_experiment(folder, model=smallest_model(), steps=STEPS, checkpoint_every=2)
    return write_settings(config, folder)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert start(settings, workdir) == 0
    return workdir


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def start(settings: Path, workdir: Path) -> int:
    return main(["--config", str(settings), "--workdir", str(workdir)])


def only_error(capsys) -> str:
    """What the command said was wrong, in one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@contextmanager
def at_batch(number: int, action):
    """Calls `action` when the step of that number is about to begin."""
    given = 0
    following = Window.next

    def next_batch(self, batches):
        nonlocal given
        given += 1
        if given == number:
            action()
        return following(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Window, "next", next_batch)
        yield


def test_sigterm_saves_and_has_a_status_of_its_own(settings, whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    with at_batch(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert start(settings, workdir) == os.EX_TEMPFAIL == 75
    assert "stopped at step 3 by a signal, after a checkpoint" in capsys.readouterr().err
    assert finished_steps(workdir) == [2, 3]
    assert start(settings, workdir) == 0
    assert "goes on from step 3" in capsys.readouterr().out
    assert_same_end(whole, workdir, STEPS)


def test_an_evaluation_that_fails_costs_no_checkpoint(settings, whole, tmp_path, capsys):
    """It is due in the middle and at the end, and fails both times; the next start makes up for it."""
    workdir, evaluated, evaluate = tmp_path / "run", [], loop.evaluate_model

    def fails_first(*arguments):
        evaluated.append(1)
        if len(evaluated) in (1, 3):
            raise UserError("an image is broken")
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_evaluates", lambda config, step: step in (2, STEPS))
        patch.setattr(loop, "evaluate_model", fails_first)
        assert start(settings, workdir) == 2
        assert finished_steps(workdir) == [2]
        assert start(settings, workdir) == 2
        assert finished_steps(workdir) == [2, 4, 6]
        assert start(settings, workdir) == 0
    assert f"has finished its {STEPS} steps already" in capsys.readouterr().out
    lines = metrics(workdir)
    assert [line["step"] for line in lines if "bbox/AP" in line] == [2, STEPS]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line != lines[2]))
    assert_same_end(whole, workdir, STEPS)


def test_a_second_run_in_a_workdir_is_refused(settings, copy, capsys):
    before = metrics(copy)
    with locked(copy):
        assert start(settings, copy) == 2
    assert "another run is at work in" in only_error(capsys)
    assert metrics(copy) == before


def spoil(checkpoint: Path) -> None:
    """Other bytes in the middle of every file of the parameters."""
    for file in (checkpoint / "model").rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)


def half_delete(checkpoint: Path) -> None:
    files = sorted(path for path in (checkpoint / "optimizer").rglob("*") if path.is_file())
    for file in files[::2]:
        file.unlink()


def without_metadata(checkpoint: Path) -> None:
    """As a copy that was broken off leaves it: the last item is not there."""
    shutil.rmtree(checkpoint / "optimizer")


@pytest.mark.parametrize("damage", [spoil, pytest.param(half_delete, marks=pytest.mark.slow), without_metadata])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(settings, whole, copy, capsys, damage):
    assert finished_steps(copy) == [4, 6]
    damage(copy / "checkpoints" / "6")
    assert start(settings, copy) == 0
    said = capsys.readouterr().out
    assert f"{copy / 'checkpoints' / '6'} is damaged or half copied" in said
    assert "goes on from step 4" in said
    assert (copy / "damaged" / "6").is_dir()
    assert_same_end(whole, copy, STEPS)


def test_a_disk_without_room_for_a_checkpoint(settings, whole, tmp_path, capsys):
    workdir, usage = tmp_path / "run", namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        full = lambda: patch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 5, 5))  # noqa: E731
        with at_batch(4, full):
            assert start(settings, workdir) == 2
    message = only_error(capsys)
    assert str(workdir) in message
    assert "0 MiB left on its disk, and a checkpoint needs" in message
    assert finished_steps(workdir) == [2]
    assert start(settings, workdir) == 0
    assert_same_end(whole, workdir, STEPS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_takes_no_more(settings, whole, tmp_path, capsys):
    """Writing fails in the middle of a checkpoint: here because no file may grow beyond 20 KiB."""
    workdir, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at_batch(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, hard))):
            status = start(settings, workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert f"{workdir} can no longer be written (File too large)" in only_error(capsys)
    assert start(settings, workdir) == 0
    assert_same_end(whole, workdir, STEPS)


def test_a_workdir_that_cannot_be_written(settings, whole, copy):
    """On a read-only mount, which holds for the superuser too."""
    mounted = ("unshare", "--mount", "--map-root-user", "sh", "-c")
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    try:
        possible = subprocess.run([*mounted, read_only, str(copy), "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare, of Linux")
    if possible.returncode:
        pytest.skip(f"mounting is not allowed here: {possible.stderr.decode().strip()}")
    before = (copy / "metrics.jsonl").read_bytes()
    run = Run(settings, copy, before=(*mounted, read_only, str(copy)))
    assert run.wait() == 2, run.output()
    assert run.output().splitlines()[-1] == f"error: --workdir {copy} cannot be written: Read-only file system"
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert json.loads((whole / "result.json").read_text()) == json.loads((copy / "result.json").read_text())
