"""Of several processes, the failure of one ends all with its status and one message, and a good end is one of all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, time
from mask_rcnn_jax import processes
from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.errors import Stopped, UserError

address, index = sys.argv[1], int(sys.argv[2])

def command():
    with processes.joined(address, 2, index):
        {}

sys.exit(run(command))
"""


def ends(body: str, tmp_path: Path, devices: tuple[int, int] = (1, 1)) -> tuple[list[int], list[str]]:
    """The statuses of two processes that run `body`, and what each said besides what libraries log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index, count in enumerate(devices):
        flags = f"--xla_force_host_platform_device_count={count}"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT.format(body), address, str(index)],
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=250)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


def test_a_users_mistake_in_one_ends_both(tmp_path):
    statuses, said = ends(
        """
        if index:
            raise UserError("b.png cannot be read")
        processes.gather(None)
        """,
        tmp_path,
    )
    assert statuses == [2, 2], said
    assert [text.count("error: b.png cannot be read") for text in said] == [1, 0]
    assert not any("Traceback" in text for text in said)


def test_a_bug_in_one_ends_the_other_that_has_finished(tmp_path):
    statuses, said = ends("index or 1 / 0", tmp_path)
    assert statuses == [1, 1], said
    assert said[0].count("ZeroDivisionError: division by zero") == 2  # the traceback, and the message
    assert "ZeroDivisionError" not in said[1]


def test_a_run_that_is_stopped_says_so_once(tmp_path):
    statuses, said = ends('raise Stopped("stopped at step 3")', tmp_path)
    assert statuses == [os.EX_TEMPFAIL] * 2, said
    assert ["stopped at step 3" in text for text in said] == [True, False]


def test_processes_with_different_devices_are_refused_by_all(tmp_path):
    statuses, said = ends("raise AssertionError", tmp_path, devices=(1, 2))
    assert statuses == [2, 2], said
    assert "need the same number of devices (process 0 has 1, process 1 has 2)" in said[0]
    assert "same number" not in said[1]
