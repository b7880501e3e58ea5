"""What processes find out about each other at the start, here with the others made up."""

import pytest

from mask_rcnn_jax import processes
from mask_rcnn_jax.errors import UserError


@pytest.fixture
def two(monkeypatch):
    """Makes this process one of two; `gather` gives what both would say, from what this one does."""

    def be(index, gathered):
        monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
        monkeypatch.setattr(processes.jax, "process_index", lambda: index)
        monkeypatch.setattr(processes, "gather", gathered)

    monkeypatch.setattr(processes, "_SHARING_PATIENCE", 0.3)
    return be


def test_a_folder_that_is_shared(two, tmp_path):
    two(0, lambda value: [value, value])
    processes.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_host_does_not_see(two, tmp_path):
    two(0, lambda value: [value, (False, "far")] if isinstance(value, tuple) else [value, None])
    with pytest.raises(UserError, match=r"not the same folder for all processes: process 1 on far cannot see"):
        processes.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_this_process_does_not_see(two, tmp_path):
    others = iter([".shared-x", (True, "near"), None])
    two(1, lambda value: [next(others), value])
    with pytest.raises(UserError, match=r"process 1 on .* cannot see what the first one writes"):
        processes.check_shared(tmp_path / "absent")
    assert not list(tmp_path.iterdir())  # only the first process writes


def test_one_process_asks_nobody(tmp_path):
    processes.check_shared(tmp_path / "absent")
