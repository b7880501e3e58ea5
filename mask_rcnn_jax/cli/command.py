"""The end of every command: exit status, messages, signals. Imports no jax, so that file commands start fast."""

import _thread
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from mask_rcnn_jax.disk.files import ANY_TEXT
from mask_rcnn_jax.errors import Stopped, UserError, described, exit_status, let_go


def run(main: Callable[[], int | None], *, when_interrupted: str = "interrupted") -> int:
    """Runs a command; returns its exit status: 0, or what `main` returns; 2 for a user's mistake or a failing disk, 75
    (the system's EX_TEMPFAIL: try again) where a signal stopped it in good order, 130 for Ctrl-C. Bugs keep their
    traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ANY_TEXT)  # whatever a file is called; standard error escapes it
    # Orbax warns of what it is asked to do, such as reading only, and logs with tracebacks what it then raises, and
    # what else failed beside that.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # data.max_pixels decides what is too large, with a sentence, and not Pillow.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        with interrupts_raised_again():
            return main() or 0
    except (UserError, Stopped, OSError) as error:
        if exit_status(error) == 1:
            raise
        print(described(error), file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt as error:
        print(when_interrupted, file=sys.stderr)
        return exit_status(error)


@contextmanager
def interrupts_raised_again() -> Iterator[None]:
    """Raise KeyboardInterrupt again where Python ignores what is raised: in destructors, and in the callbacks of its
    garbage collector, such as jax's, which run right after whatever came during a collection.
    """
    hook = sys.unraisablehook

    def ask_again(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            hook(ignored)
            return
        # In a thread, and last: the signal's handler, called here, would raise in this function.
        _thread.start_new_thread(_thread.interrupt_main, ())

    sys.unraisablehook = ask_again
    try:
        yield
    finally:
        sys.unraisablehook = hook


def leave_out_late_callbacks() -> None:
    """Leave out, to the end of the process, what is printed where Orbax gives up on many files because of one: others
    call back into an event loop that is closed by then, or fail as well.
    """
    hook = sys.unraisablehook

    def tell(ignored: Any) -> None:
        if not str(ignored.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            hook(ignored)

    sys.unraisablehook = tell


def leave(status: int) -> NoReturn:
    """End the process, and wait for no thread where a command failed: after a save that did, those of Orbax wait ten
    minutes for one another.
    """
    left = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if status and left:
        let_go()
        os._exit(status)
    sys.exit(status)
