"""Large arrays that many processes read, and sequences whose items are cut out of them.

Sent to another process, the arrays go to a file without a name that all processes map, so that they share its pages.
"""

import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np

Item = TypeVar("Item")

_Layout = dict[str, tuple[str, tuple[int, ...], int]]  # name -> type, shape, and offset in bytes

_ALIGNMENT = 64  # bytes, of every array in the file
_MOVING = threading.Lock()
_NAMELESS = os.path.isdir("/proc/self/fd")


class CutSequence(Sequence[Item]):
    """A sequence whose items are made by `_cut` when they are asked for; a slice makes a tuple of them."""

    def _cut(self, row: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Item | Sequence[Item]:
        rows = range(len(self))[index]
        return tuple(map(self._cut, rows)) if isinstance(rows, range) else self._cut(rows)


class SharedArrays:
    """Arrays by name, which are read-only.

    What `pickle` makes of them refers to an open file of this process: other processes of the machine can read it as
    long as the object that was pickled exists.
    """

    def __init__(self, arrays: dict[str, np.ndarray], file: tuple[Path, _Layout] | None = None):
        """`file` is where the arrays lie already, in a file that another process holds."""
        self._arrays, self._file = arrays, file
        for values in arrays.values():
            values.flags.writeable = False

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays by name."""
        return self._arrays

    def __reduce__(self) -> tuple[Any, ...]:
        with _MOVING:  # workers are started, and so sent the arrays, from threads of their own
            if self._file is None:
                self._file = self._move_to_file()
        return _mapped, self._file

    def _move_to_file(self) -> tuple[Path, _Layout]:
        """Writes the arrays to a file that goes with this object, and maps them from there."""
        # Without a name nothing is left of it, however the process ends; only Linux can open such a file again.
        open_file: Any = tempfile.TemporaryFile if _NAMELESS else tempfile.NamedTemporaryFile
        file = open_file(prefix="mask_rcnn_jax-")
        path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}" if _NAMELESS else file.name)
        weakref.finalize(self, file.close)
        layout, offset = {}, 0
        for name, values in self._arrays.items():
            layout[name] = (values.dtype.str, values.shape, offset)
            file.write(values.tobytes())
            offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.write(bytes(offset - file.tell()))
        file.flush()
        self._arrays = _mapped_arrays(path, layout)
        return path, layout


def _mapped(path: Path, layout: _Layout) -> SharedArrays:
    return SharedArrays(_mapped_arrays(path, layout), (path, layout))


def _mapped_arrays(path: Path, layout: _Layout) -> dict[str, np.ndarray]:
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    return {
        name: np.ndarray(shape, kind, whole[offset:].data) if 0 not in shape else np.zeros(shape, kind)
        for name, (kind, shape, offset) in layout.items()
    }
