"""Numbers on the command line, whose ranges are said as those of settings are."""

import argparse
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from mask_rcnn_jax.ranges import Range

Number = TypeVar("Number", int, float, Fraction)

_KINDS = {int: "a whole number", float: "a number", Fraction: "a number or a fraction"}


def number(kind: type[Number], allowed: Range) -> Callable[[str], Number]:
    """Return the `type` of an argparse option that takes the numbers of a range and refuses others in one sentence."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"expected {_KINDS[kind]}, not {text[:40]!r}") from None
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"must be {allowed.describe(value)}, not {text[:40]}")
        return value

    return parse
