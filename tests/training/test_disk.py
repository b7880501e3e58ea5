"""The place that a fault of the disk is blamed on is the one that failed."""

import errno
import os
import shutil
import tempfile
from collections import namedtuple

import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.runs.disk_faults import disk_faults

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A workdir, with a temporary folder beside it; both have room."""
    for name in ("temporary", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, 0, 1 << 30))
    return tmp_path / "run"


def blamed(workdir, error: Exception) -> str:
    with pytest.raises(UserError) as raised, disk_faults(workdir):
        raise error
    return str(raised.value)


def fault(number: int, path=None) -> OSError:
    return OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


def test_a_full_temporary_folder_is_not_the_workdir(workdir, monkeypatch):
    temporary = workdir.parent / "temporary"
    expected = f"the temporary folder {temporary} cannot be written (No space left on device); make room there"
    by_name = fault(errno.ENOSPC, temporary / "mask_rcnn_jax-1" / "records")
    assert blamed(workdir, by_name).startswith(expected)
    assert blamed(workdir, RuntimeError(f"in a worker: {by_name}")).startswith(expected)
    # Writing to an open file names none.
    full = lambda path: Usage(1 << 30, 1 << 30, 0 if str(path) == str(temporary) else 1 << 30)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", full)
    assert blamed(workdir, fault(errno.ENOSPC)).startswith(expected)


def test_a_full_shared_memory_is_named(workdir):
    message = blamed(workdir, fault(errno.ENOSPC, "/dev/shm/of_a_worker"))
    assert message.startswith("the shared memory /dev/shm cannot be written (No space left on device)")


REMOUNT = "check that disk and mount it again"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EFBIG, "allow files as large there"),
        (errno.EROFS, "make it writable"),
        (errno.EIO, REMOUNT),
        (errno.ESTALE, REMOUNT),
    ],
)
def test_the_workdir_is_blamed_for_its_own_files_and_where_nothing_else_is_known(workdir, number, advice):
    reason = os.strerror(number)
    expected = f"{workdir} can no longer be written ({reason}); {advice}, and the same command"
    errors = fault(number, workdir / "metrics.jsonl"), fault(number), ValueError(f'{reason}: "{workdir}/checkpoints/1"')
    for error in errors:
        assert blamed(workdir, error).startswith(expected)


def test_what_orbax_cannot_find_again_is_the_disks_fault(workdir):
    unfinished = f"{workdir}/checkpoints/2.orbax-checkpoint-tmp"
    expected = f"{workdir} can no longer be written (Input/output error); {REMOUNT}"
    for error in (
        ValueError(f"No ArrayMetadata found for process_index=0 in the checkpoint directory: {unfinished}/optimizer"),
        ValueError(f"Checkpoint directory does not exist: {unfinished}/optimizer.orbax-checkpoint-tmp."),
        NotADirectoryError(f"Path is not a directory: {unfinished}"),
    ):
        assert blamed(workdir, error).startswith(expected)


def test_a_full_disk_is_said_of_a_checkpoint_that_is_being_written(workdir):
    error = ValueError(f'{os.strerror(errno.ENOSPC)}: "{workdir}/checkpoints/2.orbax-checkpoint-tmp/model"')
    assert blamed(workdir, error).startswith(f"{workdir} can no longer be written (No space left on device); make room")


def test_a_file_elsewhere_is_named_itself(workdir):
    image = workdir.parent / "temporary" / "image.png"
    assert blamed(workdir, fault(errno.EIO, image)).startswith(f"{image} cannot be read or written (Input/output error")


AWAY = [errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ECONNABORTED, errno.ENODEV, errno.ENXIO]


@pytest.mark.parametrize("number", AWAY)
def test_a_mount_that_is_away_is_no_bug(workdir, number):
    reason = os.strerror(number)
    expected = f"{workdir} can no longer be written ({reason}); {REMOUNT}"
    error = fault(number, workdir / "metrics.jsonl")
    for same in (error, RuntimeError(f"in a worker: {error}"), ValueError(f'{reason}: "{workdir}/checkpoints/1"')):
        assert blamed(workdir, same).startswith(expected)
    image = workdir.parent / "data" / "image.png"
    assert blamed(workdir, fault(number, image)).startswith(f"{image} cannot be read or written ({reason}); {REMOUNT}")


@pytest.mark.parametrize("number", AWAY)
def test_a_socket_that_fails_is_no_disk(workdir, number, monkeypatch):
    """Errors of both may name no file; then the workdir itself is asked."""
    for error in (fault(number), RuntimeError(os.strerror(number))):
        with pytest.raises(type(error)) as raised, disk_faults(workdir):
            raise error
        assert raised.value is error

    def fails(path):
        raise fault(number, path)

    monkeypatch.setattr(shutil, "disk_usage", fails)
    assert blamed(workdir, fault(number)).startswith(f"{workdir} can no longer be written (")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_limit_of_open_files_is_no_disk(workdir, number):
    for error in (fault(number, workdir / "a"), RuntimeError(os.strerror(number))):
        expected = f"no more files can be opened ({os.strerror(number)}); raise that limit, as by ulimit -n, and the"
        assert blamed(workdir, error).startswith(expected)


def test_what_can_be_done_then_is_said(workdir):
    with pytest.raises(UserError, match=r"make room, and repeat it$"), disk_faults(workdir, "repeat it"):
        raise fault(errno.ENOSPC, workdir / "a")


def test_other_errors_pass(workdir):
    for error in (KeyError("x"), ValueError("no space"), FileNotFoundError(errno.ENOENT, "gone")):
        with pytest.raises(type(error)), disk_faults(workdir):
            raise error
