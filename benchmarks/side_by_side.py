"""Times two programs in turn, in several processes, and reports the ratio of their times.

A process measures ours, theirs, ours, ... and takes each one's median over the rounds; its ratio is to the fastest of
their forms. Processes differ (memory lies elsewhere, others use the machine), so several are started one after the
other: a table has the median ratio and the smallest and largest. Both libraries keep threads of their own that wait
busily for a moment after their work; a pause before each turn keeps one's from taking the cores of the other.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

PAUSE = 0.05  # seconds
_TURN = 0.2  # seconds that a turn lasts at least: short work is repeated

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sides:
    """One piece of work in both programs, known to give the same; `theirs` by form, of which the fastest counts."""

    ours: Call
    theirs: Mapping[str, Call]


Build = Callable[[bool], Sides]  # told whether little work will do


@dataclass(frozen=True)
class Row:
    name: str
    build: Build
    target: float | None = None  # the largest ratio ours / theirs that is aimed at


def measure(sides: Sides, rounds: int) -> dict[str, float]:
    """Median seconds of a call by program; all are called once or twice before."""
    calls = {"ours": sides.ours, **sides.theirs}
    repeats = {name: _repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            seconds[name].append(_time(call, repeats[name]))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _repeats(call: Call) -> int:
    first = _time(call, 1)  # compiles, allocates
    return 1 if first > 10 * _TURN else max(1, round(_TURN / _time(call, 1)))


def _time(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats


def summary(name: str, target: float | None, measured: list[dict[str, float]]) -> dict[str, Any]:
    """A row's figures from the medians of each process."""
    forms = [form for form in measured[0] if form != "ours"]
    ratios = [seconds["ours"] / min(seconds[form] for form in forms) for seconds in measured]
    return {
        "name": name,
        "target": target,
        "seconds": {key: statistics.median(seconds[key] for seconds in measured) for key in measured[0]},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "processes": measured,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | ours, ms | theirs, ms | ours / theirs | of processes | target |", "|---|--:|--:|--:|---|--:|"]
    for row in rows:
        forms = {form: seconds for form, seconds in row["seconds"].items() if form != "ours"}
        fastest = min(forms, key=lambda form: forms[form])
        form = f" ({fastest})" if len(forms) > 1 else ""
        spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        times = f"{_milliseconds(row['seconds']['ours'])} | {_milliseconds(forms[fastest])}{form}"
        lines.append(f"| {row['name']} | {times} | {row['ratio']:.2f} | {spread} | {target} |")
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f}"
