"""Annotations of a setting: the range of its numbers, whether older files may lack it, and
whether a run may go on with another.

`steps: Annotated[int, Range(1)] = 90_000`, `scales: Annotated[tuple[Annotated[float, Range(0.1, 10)], ...], Items(1)]`.
Ranges are checked where configurations are loaded, see `config`, and by `check` for one that was made in Python.
"""

import dataclasses
import inspect
import reprlib
import types
import typing
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar, TypeVar

from mask_rcnn_jax.errors import UserError

Config = TypeVar("Config")

LARGEST = 2**31 - 1  # numbers become int32 or float32 sooner or later


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, or between them; nan and infinities belong to none."""

    low: float
    high: float = LARGEST
    above_low: bool = False  # `low` itself is excluded
    below_high: bool = False
    multiple_of: int = 1

    def __contains__(self, value: float | Fraction) -> bool:
        above = value > self.low if self.above_low else value >= self.low
        below = value < self.high if self.below_high else value <= self.high
        return above and below and (self.multiple_of == 1 or value % self.multiple_of == 0)

    def check(self, value: float, key: str) -> None:
        """Raise UserError naming `key` where the range does not hold `value`."""
        if value not in self:
            raise UserError(f"{key} must be {self.describe(value)}, not {shown(value)}")

    def describe(self, value: float | Fraction = 0) -> str:
        """Say what `value` should be; the bound that all numbers have is left out where it is not the reason."""
        what = f"a multiple of {self.multiple_of}, " if self.multiple_of > 1 else ""
        low = f"{'above' if self.above_low else 'at least'} {self.low}"
        high = f"{'below' if self.below_high else 'at most'} {self.high}"
        return what + (low if self.high == LARGEST and value <= self.high else f"{low} and {high}")


@dataclasses.dataclass(frozen=True)
class Items:
    """The number of items in a tuple."""

    least: int

    def check(self, value: tuple[Any, ...], key: str) -> None:
        """Raise UserError naming `key` where there are too few."""
        if len(value) < self.least:
            raise UserError(f"{key} must have at least {self.least} item{'s'[: self.least != 1]}, not {len(value)}")


@dataclasses.dataclass(frozen=True)
class AddedLater:
    """Marks a setting that older files lack: its default, which must be what the program did then, stands in."""


@dataclasses.dataclass(frozen=True)
class Incidental:
    """Marks a setting that does not decide a run's result, such as where the data lie: it may differ on resume."""


_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxstring = _BRIEFLY.maxother = 200

Positive = Annotated[int, Range(1)]
NotNegative = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]  # and probabilities, scores, IoUs
BelowOne = Annotated[float, Range(0, 1, below_high=True)]
AtLeastZero = Annotated[float, Range(0)]
AboveZero = Annotated[float, Range(0, above_low=True)]
SEED = Range(0, 2**32 - 1)  # jax drops higher bits
Seed = Annotated[int, SEED]
Channels = Annotated[int, Range(1, 65_536)]
Layers = Annotated[int, Range(0, 100)]
BoxWeights = tuple[AboveZero, AboveZero, AboveZero, AboveZero]


def check(config: Any) -> None:
    """Check every number in a tree of configurations that was made in Python.

    Raises UserError naming the dotted key, the value and the range.
    """
    check_fields(type(config), vars(config), "")


def check_fields(cls: type, values: Mapping[str, Any], key: str) -> None:
    """Check the values of a configuration's fields before it is made; `key` is its own."""
    for name, annotation in annotations(cls).items():
        _check(values[name], annotation, f"{key}.{name}" if key else name)


def annotations(cls: type) -> dict[str, Any]:
    """Return the annotation of each setting with what is said beside it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def may_be_missing(cls: type) -> dict[str, Any]:
    """Return the defaults of the settings that older files lack."""
    added = {name for name, hint in annotations(cls).items() if AddedLater() in getattr(hint, "__metadata__", ())}
    return {field.name: field.default for field in dataclasses.fields(cls) if field.name in added}


def with_incidentals_of(config: Config, other: object) -> Config:
    """Return `config` with the settings of `other` that are marked `Incidental`, wherever the two are of one class."""
    if isinstance(config, tuple) and isinstance(other, tuple) and len(config) == len(other):
        return type(config)(with_incidentals_of(*pair) for pair in zip(config, other, strict=True))
    if not dataclasses.is_dataclass(config) or isinstance(config, type) or type(config) is not type(other):
        return config
    values = {}
    for name, hint in annotations(type(config)).items():
        mine, others = getattr(config, name), getattr(other, name)
        incidental = Incidental() in getattr(hint, "__metadata__", ())
        values[name] = others if incidental else with_incidentals_of(mine, others)
    return dataclasses.replace(config, **values)


def forgotten(cls: type) -> list[str]:
    """Return the settings that a class has in its annotations and not among its fields, being no dataclass itself."""
    if "__dataclass_params__" in vars(cls):
        return []
    kinds = inspect.get_annotations(cls).items()
    return [name for name, kind in kinds if typing.get_origin(kind) is not ClassVar and kind is not ClassVar]


def shown(value: Any) -> str:
    """Return a value as a message has it: what is long or deep is cut, whoever wrote it."""
    # Python refuses to spell out integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return _BRIEFLY.repr(value)


def _check(value: Any, annotation: Any, key: str) -> None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(value):
        check_fields(type(value), vars(value), key)
    elif origin is Annotated:
        _check(value, arguments[0], key)
        for marker in annotation.__metadata__:
            if isinstance(marker, Range | Items) and value is not None:
                marker.check(value, key)
    elif origin in (typing.Union, types.UnionType):
        for member in arguments:
            if _fits(value, member):
                _check(value, member, key)
    elif origin is tuple:
        items = (arguments[0],) * len(value) if arguments[1:] == (Ellipsis,) else arguments
        for i, (item, argument) in enumerate(zip(value, items, strict=True)):
            _check(item, argument, f"{key}[{i}]")


def _fits(value: Any, member: Any) -> bool:
    """Tell whether a member of a union is the one for this value, for what is told apart by its kind."""
    while typing.get_origin(member) is Annotated:
        member = typing.get_args(member)[0]
    if typing.get_origin(member) is tuple:
        return isinstance(value, tuple)
    return isinstance(value, int | float) and not isinstance(value, bool) and member in (int, float)
