"""The exceptions that are not bugs, those of a failing disk among them, and how a command ends with each."""

import errno
import multiprocessing
import os
import re
import sys
from contextlib import suppress

# Control characters, and line breaks that are not those of a message: its further lines are indented.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\n(?!  )")


# --- A disk, a mount or a limit: never a bug, wherever it occurs ------------------------------------------------------


def _numbers(*names: str) -> tuple[int, ...]:
    """Those that the system has; some are Linux's alone."""
    return tuple(getattr(errno, name) for name in names if hasattr(errno, name))


FULL = _numbers("ENOSPC", "EDQUOT")
_CLOSED = _numbers("EROFS", "EACCES", "EPERM", "ENOKEY", "EKEYEXPIRED")
_FAILING = _numbers("EIO", "EREMOTEIO", "ESTALE", "EUCLEAN")
# A network or a device is away, which sockets and other devices say as well.
AWAY = _numbers(
    *("ENOTCONN", "ESHUTDOWN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENODEV", "ENXIO", "ENOMEDIUM", "EBADMSG"),
)
LIMITS = _numbers("EMFILE", "ENFILE")
# What to do about each; whatever is not here, such as a missing file, would be a bug.
ADVICE = {
    **dict.fromkeys(FULL, "make room"),
    errno.EFBIG: "allow files as large there",
    **dict.fromkeys(_CLOSED, "make it writable"),
    **dict.fromkeys((*_FAILING, *AWAY), "check that disk and mount it again"),
    **dict.fromkeys(LIMITS, "raise that limit, as by ulimit -n"),
}


def disk_failure(error: BaseException) -> str | None:
    """Return the sentence that says what failed and what to do, None for an error that would be a bug."""
    if not isinstance(error, OSError) or error.errno not in ADVICE:
        return None
    # Other things than files have these errors too: sockets and processes, which name none.
    if error.filename is None and error.errno in (*AWAY, errno.EPERM):
        return None
    return failed(error.errno, "a file" if error.filename is None else os.path.abspath(os.fsdecode(error.filename)))


def failed(number: int, place: object) -> str:
    """Return the sentence for one of the numbers of `ADVICE`, met at `place`."""
    if number in LIMITS:
        return f"no more files can be opened ({os.strerror(number)}); {ADVICE[number]}"
    return f"{place} cannot be read or written ({os.strerror(number)}); {ADVICE[number]}"


# --- Exceptions and what is said of them ------------------------------------------------------------------------------


class UserError(Exception):
    """A mistake in a file, key, or argument; its message is one sentence that names it and says what to do.

    Commands print the message and exit with status 2, as for a disk that fails (`disk_failure`). Every other
    exception is a bug and keeps its traceback.
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
