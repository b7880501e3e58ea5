"""How annotations are checked when the tests call the package."""

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as type checkers have it
_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Have every function of the package checked that is imported from here on."""
    jaxtyping.jaxtyped = jaxtyped  # which the hook finds by this name
    install_import_hook("mask_rcnn_jax", f"{__name__}.typechecker")


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, but for `__init__`: jax rebuilds dataclasses with axes, specs, or None in place of their arrays."""
    return function if function.__name__ == "__init__" else _checked(function)


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """jaxtyping's decorator, but for functions that name no array: binding the sizes of axes is most of its time."""

    def decorate(target: Any) -> Any:
        plain = isinstance(target, FunctionType) and not inspect.isgeneratorfunction(target)
        if not plain or any(map(_names_array, target.__annotations__.values())):
            return _jaxtyped(target, typechecker=typechecker)
        checked = None

        @functools.wraps(target)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal checked
            if jaxtyping.config.jaxtyping_disable:
                return target(*args, **kwargs)
            if checked is None:  # many are never called
                checked = typechecker(target)
            return checked(*args, **kwargs)

        return call

    return decorate


def _names_array(annotation: Any) -> bool:
    """Whether an array with axes is part of an annotation; one that is still text may name anything."""
    if isinstance(annotation, list | tuple):  # of the arguments of a Callable
        return any(map(_names_array, annotation))
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    if get_origin(annotation) is Literal:
        return False
    return isinstance(annotation, str) or any(map(_names_array, get_args(annotation)))
