"""Means, spreads and intervals of a study's metrics. Shape letters: `S` seeds, `N` draws of the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_TAILS = (0.025, 0.975)  # of an interval of 95 %


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds of a row; undefined ones are left out, and what is then undefined is None."""

    seeds: int
    mean: float | None
    standard_deviation: float | None  # of the seeds as a sample: divided by n - 1
    minimum: float | None
    maximum: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one value a seed."""
    defined = np.array([value for value in values if math.isfinite(value)])
    if not len(defined):
        return Spread(0, None, None, None, None)
    deviation = float(defined.std(ddof=1)) if len(defined) > 1 else None
    return Spread(len(defined), float(defined.mean()), deviation, float(defined.min()), float(defined.max()))


def interval(first: Float[np.ndarray, "S N"], second: Float[np.ndarray, "S N"]) -> tuple[float, float] | None:
    """Return between which differences, second less first, 95 % of the draws lie, each averaged over the seeds.

    A column holds the metric in one draw of the images, the same for all rows. Draws in which it is undefined are left
    out; None where it is in all of them.
    """
    differences = second.mean(axis=0) - first.mean(axis=0)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return None
    low, high = np.quantile(differences, _TAILS).tolist()
    return low, high
