"""Files that are there whole or not at all, and text that holds any name a file system allows."""

import codecs
import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ANY_TEXT = "mask_rcnn_jax.any_text"  # the `errors` of text files and streams; see `_encoded`
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def is_file(path: str | Path) -> bool:
    """Tell whether a regular file has this name, which may be any text.

    Raises OSError where the disk does not say; os.path.isfile takes that for no, and what is there would be left out.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | Path) -> bool:
    """Tell whether a folder has this name; otherwise as `is_file`."""
    return stat.S_ISDIR(_mode(path))


def exists(path: str | Path) -> bool:
    """Tell whether anything that can be reached has this name; otherwise as `is_file`."""
    return _mode(path) != 0


def is_taken(path: str | Path) -> bool:
    """Tell whether anything has this name, also a link to nothing; otherwise as `is_file`."""
    return _mode(path, follow_links=False) != 0


def _mode(path: str | Path, *, follow_links: bool = True) -> int:
    try:
        return os.stat(path, follow_symlinks=follow_links).st_mode
    except ValueError:  # a name with a NUL
        return 0
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            raise
        return 0


def open_file(path: str | Path) -> io.BufferedReader:
    """Open a file that data may have named, to read its bytes.

    Raises OSError for what is no regular file, such as a pipe, for which one would wait.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # Python says of a folder what it is
            raise OSError(f"{path} is no regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def replacing(path: Path, owner: str = "") -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end of the `with`, and is removed where that fails.

    Those who may write to one `path` at the same time each need an `owner` of their own.
    """
    # A hidden name that nobody else has, as short as any: the longest names allow no suffix.
    name = hashlib.sha256(f"{path.name}/{owner}".encode(errors=ANY_TEXT)).hexdigest()[:24]
    part = path.with_name(f".{name}.part")
    try:
        part.unlink(missing_ok=True)  # as a link, it would have its target written
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the very bytes of a file name that is no text in the encoding, an escape for any other character."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(ANY_TEXT, _encoded)
