"""CSV tables, in UTF-8 with the very bytes of file names, and without cells that a spreadsheet would run."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mask_rcnn_jax.disk.files import ANY_TEXT

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # what begins a formula (OWASP), and its full-width forms


@contextmanager
def open_table(path: Path) -> Iterator[Callable[[Sequence[object]], None]]:
    """Yield what appends a row to the table `path`. A text that begins a formula has an apostrophe before it."""
    with path.open("w", encoding="utf-8", errors=ANY_TEXT, newline="") as file:
        writer = csv.writer(file)
        yield lambda row: writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
