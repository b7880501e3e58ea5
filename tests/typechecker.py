"""How annotations are checked when the tests call the package."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as type checkers have it


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, but for `__init__`: jax rebuilds dataclasses with axes, specs, or None in place of their arrays."""
    return function if function.__name__ == "__init__" else _checked(function)
