"""How commands end, and what they print of files with any name."""

import asyncio
import errno
import gc
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from mask_rcnn_jax.cli.command import leave_out_late_callbacks, run
from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.data.augment.transforms import open_image
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import annotation, write_dataset

ODD = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("utf-8", b"caf\xe9 \xd0\x96 \\ud800\n"), ("latin-1", b"caf\xe9 \\u0416 \\ud800\n"), ("ascii:strict", None)],
)
def test_names_that_are_no_text_are_printed(encoding, printed) -> None:
    code = "import sys; from mask_rcnn_jax.cli.command import run; run(lambda: print(*map(eval, sys.argv[1:])))"
    names = [ascii(name) for name in (ODD, "\u0416", "\ud800")]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, check=True)
    assert done.stdout == (printed or b"caf\xe9 \\u0416 \\ud800\n")


def test_names_cannot_speak_to_the_terminal(capsys) -> None:
    def fail() -> None:
        raise UserError("Image \x1b[2Ja\nerror: b\r\x9b.png is broken:\n  here\tand there")

    assert run(fail) == 2
    assert capsys.readouterr().err == "error: Image \\x1b[2Ja\\nerror: b\\r\\x9b.png is broken:\n  here\\tand there\n"


def test_what_failed_beside_is_not_logged(tmp_path) -> None:
    code = """
import asyncio, sys
import absl.logging
from mask_rcnn_jax.cli.command import run

async def fail():
    raise OSError(5, "beside")

def main():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    tasks.append(loop.create_task(fail()))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    fail()  # and is never waited for
    try:
        raise OSError(5, "first", "a")
    except OSError:
        absl.logging.exception("a save failed")
        raise

tasks = []
sys.exit(run(main))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'a'} cannot be read")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.EIO, "failed", "/mount/a.json"),
            "/mount/a.json cannot be read or written (Input/output error); ",
        ),
        (OSError(errno.ENOSPC, "failed"), "a file cannot be read or written (No space left on device); make room"),
        (OSError(errno.EMFILE, "failed", "/a"), "no more files can be opened (Too many open files); raise that limit"),
        (OSError(errno.ENOTCONN, "failed", "/mount"), "/mount cannot be read or written (Transport endpoint is not "),
    ],
)
def test_a_failing_disk_is_no_bug(error, sentence, capsys) -> None:
    assert run(lambda: _raise(error)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {sentence}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "none", "a.json"),  # which should have been looked for
        OSError(errno.ENOTCONN, "a socket's"),
        PermissionError(errno.EPERM, "a process's"),
        OSError("without a number"),
    ],
)
def test_other_errors_of_the_system_are_bugs(error) -> None:
    with pytest.raises(OSError, match=re.escape(str(error))):
        run(lambda: _raise(error))


def _raise(error: Exception) -> None:
    raise error


class CallsBack:
    """Something that calls back into an event loop that is closed, where Python can raise nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, error: Exception | None = None) -> None:
        self.loop, self.error = loop, error

    def __del__(self) -> None:
        if self.error is not None:
            raise self.error
        self.loop.call_soon_threadsafe(print)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_late_callbacks_are_not_printed(monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: told.append(str(ignored.exc_value)))
    loop = asyncio.new_event_loop()
    loop.close()

    def main() -> None:
        CallsBack(loop)
        CallsBack(loop, Exception("Encountered error while reading array index: 1"))
        CallsBack(loop, ValueError("a bug"))

    leave_out_late_callbacks()
    assert run(main) == 0
    main()
    assert told == ["a bug", "a bug"]
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        run(lambda: loop.call_soon_threadsafe(print))


@pytest.mark.parametrize(("status", "waits"), [(2, False), (0, True)])
def test_threads_are_waited_for_where_all_went_well(status: int, waits: bool) -> None:
    code = """if True:
        import sys, threading, time
        from mask_rcnn_jax.cli.command import leave

        def wait():
            time.sleep(2)
            print("waited", flush=True)

        threading.Thread(target=wait).start()
        print("done")
        leave(int(sys.argv[1]))
    """
    done = subprocess.run([sys.executable, "-c", code, str(status)], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout == "done\n" + "waited\n" * waits
    assert not done.stderr


class Interrupted:
    """Something during whose destructor Ctrl-C comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def interrupted_collection(phase: str, _: object) -> None:
    if phase == "stop":
        signal.raise_signal(signal.SIGINT)


def collect() -> None:
    gc.callbacks.append(interrupted_collection)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(interrupted_collection)


@pytest.mark.parametrize("ignore", [Interrupted, collect])
def test_ctrl_c_is_not_lost_where_python_ignores_exceptions(ignore, capsys) -> None:
    def command() -> None:
        ignore()
        for _ in range(30_000):
            time.sleep(0.01)

    hook, handler = sys.unraisablehook, signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(command) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "interrupted\n"
    assert sys.unraisablehook is hook


def test_other_exceptions_of_destructors_stay_what_they_are(monkeypatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError

    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda details: ignored.append(details.exc_type))
    assert run(lambda: Failing() and None) == 0
    assert ignored == [ValueError]


@pytest.mark.filterwarnings("always")
def test_large_images_are_no_bombs(tmp_path, monkeypatch, recwarn) -> None:
    Image.new("RGB", (40, 24)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # Pillow warns up to twice its limit
    assert run(lambda: print(open_image(tmp_path / "a.png").size)) == 0
    assert not recwarn.list


def test_names_in_reports_cannot_speak_to_the_terminal(tmp_path, capsys) -> None:
    image = {"id": 1, "file_name": "\x1b[2J\r.png", "width": 17, "height": 12}  # another size than the file's
    source = write_dataset(tmp_path, [annotation(image_id=1)], images=[image])
    assert main(["lint", source.root]) == 1
    printed = capsys.readouterr().out
    assert "\\x1b[2J\\r.png" in printed
    assert not set("\x1b\r") & set(printed)
