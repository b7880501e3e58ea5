"""System errors of a disk, a mount or a limit: never a bug, wherever they occur."""

import errno
import os


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
