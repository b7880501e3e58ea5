"""The exceptions that are not bugs, and how a command ends with each."""

import os
import re

# Control characters, and line breaks that are not those of a message: its further lines are indented.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\n(?!  )")


class UserError(Exception):
    """A mistake in a file, key, or argument; its message is one sentence that names it and says what to do.

    Commands print the message and exit with status 2. Every other exception is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """A run was asked to end before its last step, and did so in good order. Commands exit with status 75."""


def exit_status(error: BaseException) -> int:
    """Return the status of a command that ends with `error`; 1 for a bug."""
    statuses = {UserError: 2, Stopped: os.EX_TEMPFAIL, KeyboardInterrupt: 130}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 1)


def described(error: BaseException) -> str:
    """Return what a command says of `error`."""
    return printable(f"error: {error}") if isinstance(error, UserError) else str(error)


def printable(message: str) -> str:
    """Return the message with escapes for what a file's name may do to a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
