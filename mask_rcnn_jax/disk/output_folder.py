"""Folders that commands write into, beside files of other origin: those stay as they are.

What was written is recorded in the folder by its content, so a file that somebody has changed since, or put in its
place, is no longer the command's own.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mask_rcnn_jax.disk.files import is_folder, replacing
from mask_rcnn_jax.errors import UserError

RECORD = ".mask-rcnn-outputs.jsonl"  # a line for each file: its path in the folder, its size, its SHA-256

_Content = tuple[int, str]  # bytes, and their SHA-256


class OutputFolder:
    """The folder `root` of a command's output, which spares its `inputs` and what it has not written.

    Files of other origin are replaced with `overwrite` only, inputs never. Nothing is made before something is written.
    """

    def __init__(self, root: str | Path, inputs: Iterable[str | Path] = (), overwrite: bool = False):
        self.root = Path(root)
        self._overwrite = overwrite
        self._inputs = {_place(path): path for path in inputs}
        self._inputs.pop(None, None)
        self._record = _Record(self.root)
        self._owner = secrets.token_hex(8)

    def check(self, files: Iterable[Path]) -> None:
        """Raise UserError where writing `files`, which lie below the root, would replace what must stay."""
        foreign = []
        for file in files:
            if (path := self._inputs.get(_place(file))) is not None:
                raise UserError(f"{file} would replace the input {path}; choose another --out.")
            if not self._overwrite and os.path.lexists(file) and not is_folder(file) and not self._is_own(file):
                foreign.append(file)
        if foreign:
            more = f" and {len(foreign) - 1} more are" if len(foreign) > 1 else " is"
            raise UserError(
                f"{foreign[0]}{more} there already, written or changed by something else than this command; choose"
                " another --out, or replace with --overwrite."
            )

    def _is_own(self, file: Path) -> bool:
        if not self._record.has(file) and self._record.is_outdated():  # another command writes here, too
            self._record = _Record(self.root)
        return self._record.has(file)

    def remove_own(self, files: Iterable[Path]) -> None:
        """Remove those of `files` that this command has written, as an earlier run's which this run has not replaced.

        Files of other origin and inputs stay.
        """
        for file in files:
            if _place(file) not in self._inputs and self._is_own(file):
                file.unlink(missing_ok=True)

    @contextmanager
    def replacing(self, file: Path) -> Iterator[Path]:
        """A path to write to, which becomes `file` at the end of the `with`; its folder is made.

        Raises UserError as `check` does, also for what has come there since; OSError where it cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, self._owner) as part:
            yield part
            self.check([file])
            # First recorded, then put in its place: what a kill leaves there is either the one on record or the other.
            self._record.add(file, _content(part))


def without_outputs(files: Sequence[Path], root: Path) -> list[Path]:
    """Return those of `files` below `root` that no command has written as its output into a folder there."""
    record_of = cache(_Record)

    def is_output(file: Path) -> bool:
        depth = len(file.relative_to(root).parts)
        return any(record_of(folder).has(file) for folder in list(file.parents)[:depth])

    return [file for file in files if not is_output(file)]


def lies_in(path: Path, folder: Path) -> bool:
    """Tell whether `path` is `folder` or lies in it, by whatever name, link or spelling."""
    place, real = _place(folder), Path(os.path.realpath(path))
    return place is not None and place in map(_place, (real, *real.parents))


class _Record:
    """The contents that each file of a folder was given, now and formerly."""

    def __init__(self, root: Path):
        self._root, self._file = root, root / RECORD
        self._contents: dict[str, set[_Content]] = {}
        try:
            content = self._file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            content = b""
        except OSError as error:
            raise UserError(
                f"{self._file} cannot be read ({error.strerror or error}); make it readable, or remove it."
            ) from None
        self._length = len(content)
        for line in content.splitlines():
            # Half a line is what a kill leaves of one.
            try:
                name, size, digest = json.loads(line)
                self._contents.setdefault(name, set()).add((size, digest))
            except (ValueError, TypeError, RecursionError):
                continue

    def has(self, file: Path) -> bool:
        """Tell whether `file` has a content that it was given."""
        contents = self._contents.get(self._name(file), set())
        try:
            return os.path.getsize(file) in {size for size, _ in contents} and _content(file) in contents
        except OSError:
            return False

    def is_outdated(self) -> bool:
        """Tell whether the record has grown since it was read, other than by `add`."""
        try:
            return os.path.getsize(self._file) != self._length
        except OSError:
            return False

    def add(self, file: Path, content: _Content) -> None:
        name = self._name(file)
        if content in self._contents.get(name, set()):
            return
        with open(self._file, "ab", opener=_open_itself) as record:
            # Begins with the line break, which half a line before it lacks.
            self._length += record.write(f"\n{json.dumps([name, *content])}".encode())
        self._contents.setdefault(name, set()).add(content)

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()


def _open_itself(path: str, flags: int) -> int:
    """Open the file, but not what a link of its name points to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _content(file: Path) -> _Content:
    with file.open("rb") as opened:
        return os.path.getsize(file), hashlib.file_digest(opened, "sha256").hexdigest()


def _place(path: str | Path) -> tuple[int, int] | None:
    """Identify the file that `path` names, by whatever name, link or spelling; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
