"""The memory that what a file holds may take."""

from pathlib import Path

from mask_rcnn_jax.errors import UserError

# What a file may take in memory: views share storages, bfloat16 doubles and compression helps, but never by much.
_MOST_TIMES, _MOST_BYTES = 4, 1 << 28


class Budget:
    """The memory that the arrays of one file may still take."""

    def __init__(self, path: Path, size: int, advice: str):
        """`size` is the file's, in bytes; `advice` says what to do about one that would take too much."""
        self._path, self._size, self._advice = path, size, advice
        self._left = self._most = _MOST_TIMES * size + _MOST_BYTES

    def check(self, nbytes: int) -> None:
        """Raise `UserError` where so many bytes more are too many."""
        if nbytes > self._left:
            raise UserError(
                f"{self._path} has {self._size} bytes and would take more than {self._most} in memory; {self._advice}"
            )

    def take(self, nbytes: int) -> None:
        """Count bytes that are about to be used; raise `UserError` where they are too many."""
        self.check(nbytes)
        self._left -= nbytes
