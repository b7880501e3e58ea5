"""Values of instances that are a head's own, as JSON and tables hold them, and back.

Shape letters: `n` instances of one image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mask_rcnn_jax.data.records.entries import is_number
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.value_names import is_free

Extras = Mapping[str, Shaped[np.ndarray, "n ..."]]

_LONGEST = 16  # numbers of a vector that a table has columns for


def json_value(values: Shaped[np.ndarray, "..."]) -> Any:
    """Numbers or nested lists of them as JSON has them: null for what is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        values = values.astype(object)
        values[~finite] = None
    return values.tolist()


def as_numbers(rows: Any) -> Shaped[np.ndarray, "n ..."] | None:
    """The array that numbers, or nested lists of equal lengths, are; null becomes NaN. None for anything else."""
    try:
        array = np.array(rows)
    except ValueError:  # lists of different lengths, or nested too deeply
        return None
    if array.dtype == object:
        flat = array.ravel().tolist()
        if not all(value is None or is_number(value) for value in flat):
            return None
        array = np.array([math.nan if value is None else float(value) for value in flat]).reshape(array.shape)
    return array if array.ndim and array.dtype.kind in "biuf" else None


def extras_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    """Read what entries of a COCO results file have beside COCO's keys, where all of them have it in numbers."""
    extras = {}
    for name in results[0] if results else ():
        if is_free(name) and all(name in result for result in results):
            values = as_numbers([result[name] for result in results])
            if values is not None:
                extras[name] = values
    return extras


def table_columns(extras: Extras, others: Sequence[str]) -> list[str]:
    """The columns of what fits a table: `name` for a number of each instance, `name_1`, `name_2` for a short vector.

    Raises UserError where one has the name of another, or of `others`.
    """
    columns: list[str] = []
    for name, values in _in_table(extras):
        for column in [name] if values.ndim == 1 else [f"{name}_{k}" for k in range(1, values.shape[1] + 1)]:
            if column in others or column in columns:
                raise UserError(f"a head's value '{name}' would be a second column '{column}' of a table; rename it")
            columns.append(column)
    return columns


def table_cells(extras: Extras, i: int) -> list[Any]:
    """The cells of instance `i` in `table_columns`, empty for what is not finite."""
    # NumPy's scalars: of a float32 they write the fewest digits that tell it from others.
    flat = [value for _, values in _in_table(extras) for value in np.ravel(values[i])]
    return [value if np.isfinite(value) else None for value in flat]


def _in_table(extras: Extras) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in extras.items():
        if values.ndim == 1 or (values.ndim == 2 and values.shape[1] <= _LONGEST):
            yield name, values
