"""The exceptions that are not bugs, and how a command ends with each."""

import multiprocessing
import os
import re
import sys
from contextlib import suppress

from mask_rcnn_jax.disk_errors import disk_failure

# Control characters, and line breaks that are not those of a message: its further lines are indented.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\n(?!  )")


class UserError(Exception):
    """A mistake in a file, key, or argument; its message is one sentence that names it and says what to do.

    Commands print the message and exit with status 2, as for a disk that fails (`disk_errors`). Every other exception
    is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """A run was asked to end before its last step, and did so in good order. Commands exit with status 75."""


def exit_status(error: BaseException) -> int:
    """Return the status of a command that ends with `error`; 1 for a bug, which a failing disk is not."""
    if disk_failure(error):
        return 2
    statuses = {UserError: 2, Stopped: os.EX_TEMPFAIL, KeyboardInterrupt: 130}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 1)


def let_go() -> None:
    """Kill the processes that this one has started and write out what it has printed, for an end without an exit."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def described(error: BaseException) -> str:
    """Return what a command says of `error`."""
    mistake = error if isinstance(error, UserError) else disk_failure(error)
    return printable(f"error: {mistake}") if mistake else str(error)


def printable(message: str) -> str:
    """Return the message with escapes for what a file's name may do to a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
