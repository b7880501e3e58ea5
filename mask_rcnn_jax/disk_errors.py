"""What the system says of a disk, a mount or a limit: no bug, wherever it is met."""

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOKEY, errno.EKEYEXPIRED)
_FAILING = (errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EUCLEAN)
# A network or a device is away, which sockets and other devices say as well.
AWAY = (
    *(errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.EBADMSG),
)
LIMITS = (errno.EMFILE, errno.ENFILE)
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
    reason = os.strerror(error.errno)
    if error.errno in LIMITS:
        return f"no more files can be opened ({reason}); {ADVICE[error.errno]}"
    file = "a file" if error.filename is None else os.path.abspath(os.fsdecode(error.filename))
    return f"{file} cannot be read or written ({reason}); {ADVICE[error.errno]}"
