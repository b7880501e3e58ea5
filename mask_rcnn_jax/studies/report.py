"""The report of a study as a tree of JSON values: what its plan is, what its cells came to, and how rows compare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.studies.cells import Cell, cells_of, is_finished, read_outcome, read_resamples
from mask_rcnn_jax.studies.plan import Plan
from mask_rcnn_jax.studies.statistics import interval, spread
from mask_rcnn_jax.training.runs.reproduce import compare

EQUAL, WITHIN, DIFFERS, UNKNOWN = "equal", "within tolerance", "differs", "cannot be compared"

Finished = Mapping[tuple[str, int], tuple[Cell, dict[str, Any]]]  # cells and outcomes by row and seed


def report_of(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return the report on the cells in `folder` that are finished.

    "plan" is the plan, as `from_json` takes it. "cells" has by row and seed what each came to, "rows" by row and metric
    its spread over the seeds, "comparisons" the differences of any two rows, in the order of the plan, and "equalities"
    for each pair what every seed came to. What is not defined, or not known yet, is None.
    """
    finished: dict[tuple[str, int], tuple[Cell, dict[str, Any]]] = {}
    for cell in cells_of(plan, folder):
        outcome = read_outcome(cell, plan)
        if outcome is not None and is_finished(cell, plan):
            finished[cell.row, cell.seed] = cell, outcome
    names = [row.name for row in plan.rows]
    return {
        "plan": to_json(plan),
        "cells": {
            name: {str(seed): _told(*finished[name, seed]) for seed in plan.seeds if (name, seed) in finished}
            for name in names
        },
        "rows": {
            name: {metric: asdict(spread(_values(finished, name, plan.seeds, metric))) for metric in plan.metrics}
            for name in names
        },
        "comparisons": [
            _compared(plan, finished, first, second, metric)
            for first, second in combinations(names, 2)
            for metric in plan.metrics
        ],
        "equalities": [_equality(plan, finished, *pair) for pair in plan.equalities],
    }


def _told(cell: Cell, outcome: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {name: _or_none(value) for name, value in outcome["metrics"].items()}
    return {
        "folder": cell.name,
        "step": outcome["step"],
        "metrics": metrics,
        "data": outcome["data"],
        "result": outcome["result"],
    }


def _values(finished: Finished, row: str, seeds: Sequence[int], metric: str) -> list[float]:
    """The metric of each finished seed; NaN where it has none."""
    return [finished[row, seed][1]["metrics"].get(metric, math.nan) for seed in seeds if (row, seed) in finished]


def _compared(plan: Plan, finished: Finished, first: str, second: str, metric: str) -> dict[str, Any]:
    """The difference, second less first, over the seeds that both have finished, and its interval over the images."""
    seeds = [seed for seed in plan.seeds if (first, seed) in finished and (second, seed) in finished]
    means = [np.mean(_values(finished, row, seeds, metric)) if seeds else math.nan for row in (first, second)]
    between: tuple[float, float] | None = None
    cells = [[finished[row, seed] for seed in seeds] for row in (first, second)]
    # Of other images, the same draw is not the same.
    if seeds and len({outcome["data"] for row in cells for _, outcome in row}) == 1:
        drawn = [[(read_resamples(cell, plan) or {}).get(metric) for cell, _ in row] for row in cells]
        if all(values for row in drawn for values in row):
            between = interval(*(np.array(row, np.float64) for row in drawn))
    return {
        "first": first,
        "second": second,
        "metric": metric,
        "seeds": seeds,
        "difference": _or_none(float(means[1] - means[0])),
        "interval": between,
    }


def _equality(plan: Plan, finished: Finished, first: str, second: str) -> dict[str, Any]:
    seeds: dict[str, Any] = {}
    for seed in plan.seeds:
        if (first, seed) in finished and (second, seed) in finished:
            verdict, lines = _judged(plan, finished[first, seed], finished[second, seed])
            seeds[str(seed)] = {"verdict": verdict, "lines": lines}
    return {"first": first, "second": second, "seeds": seeds}


def _judged(
    plan: Plan, first: tuple[Cell, dict[str, Any]], second: tuple[Cell, dict[str, Any]]
) -> tuple[str, list[str]]:
    """The verdict on two cells of one seed, and the lines that `mask-rcnn reproduce` would print of them."""
    try:
        verdict = compare(first[0].workdir, second[0].workdir)
    except UserError as error:
        return UNKNOWN, [str(error)]
    if verdict.same:
        return EQUAL, verdict.lines
    pairs = [[outcome["metrics"].get(metric, math.nan) for _, outcome in (first, second)] for metric in plan.metrics]
    near = all(abs(a - b) <= plan.tolerance or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    return WITHIN if near else DIFFERS, verdict.lines


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
