"""The report of a study as text, `study.md`."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mask_rcnn_jax.errors import printable

_NOTHING = "-"


def as_markdown(report: Mapping[str, Any], title: str, folder: Path) -> str:
    """Return the tables of a report: each deciding metric by row, differences to the first row, what should be equal,
    and the commands that train a cell again. `folder` is the study's.
    """
    parts = (_rows(report), _comparisons(report), _equalities(report), _commands(report, folder))
    return "\n".join([f"# {_text(title)}", *chain.from_iterable(parts), ""])


def _rows(report: Mapping[str, Any]) -> Iterator[str]:
    plan = report["plan"]
    total = len(plan["seeds"])
    for metric in plan["metrics"]:
        yield f"\n## {_text(metric)}"
        yield from _table(
            ["row", "settings", "seeds", "mean", "standard deviation", "minimum", "maximum"],
            (
                [
                    row["name"],
                    _settings(row["overrides"]),
                    f"{len(report['cells'][row['name']])} of {total}",
                    *(_number(spread[name]) for name in ("mean", "standard_deviation", "minimum", "maximum")),
                ]
                for row, spread in ((row, report["rows"][row["name"]][metric]) for row in plan["rows"])
            ),
        )


def _settings(overrides: Sequence[str] | None) -> str:
    if overrides is None:
        return "a configuration of its own"
    return ", ".join(f"`{_text(text)}`" for text in overrides) or _NOTHING


def _comparisons(report: Mapping[str, Any]) -> Iterator[str]:
    plan = report["plan"]
    first = plan["rows"][0]["name"]
    shown = [one for one in report["comparisons"] if one["first"] == first]
    if not shown:
        return
    yield f"\n## Differences to {first}"
    yield (
        f"\nOf the means over the seeds that both rows have finished, each run's checkpoint '{plan['checkpoint']}'. The"
        f" interval holds 95 % of {plan['resamples']} draws of the images, the same for both rows; it does not tell how"
        " far seeds differ."
    )
    yield from _table(
        ["row", "metric", "seeds", "difference", "95 % interval"],
        (
            [one["second"], _text(one["metric"]), str(len(one["seeds"])), _signed(one["difference"]), _interval(one)]
            for one in shown
        ),
    )


def _equalities(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["equalities"]:
        return
    plan = report["plan"]
    yield "\n## Equality"
    yield (
        "\nequal: the same bits of parameters, statistics and metrics; within tolerance: the metrics above are at most"
        f" {plan['tolerance']:g} apart."
    )
    yield from _table(
        ["rows", *(f"seed {seed}" for seed in plan["seeds"])],
        (
            [
                f"{one['first']} and {one['second']}",
                *(one["seeds"].get(str(seed), {"verdict": _NOTHING})["verdict"] for seed in plan["seeds"]),
            ]
            for one in report["equalities"]
        ),
    )


def _commands(report: Mapping[str, Any], folder: Path) -> Iterator[str]:
    cells = [cell["folder"] for row in report["cells"].values() for cell in row.values()]
    if not cells:
        yield "\nNo cell is finished yet."
        return
    yield "\n## Again\n\nEach cell is an ordinary run, which is trained again and compared bit for bit by\n"
    yield from (f"    mask-rcnn reproduce {shlex.quote(printable(str(folder / cell)))}" for cell in cells)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"\n| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:+.4f}"


def _interval(comparison: Mapping[str, Any]) -> str:
    between = comparison["interval"]
    return _NOTHING if between is None else f"{_signed(between[0])} to {_signed(between[1])}"


def _text(text: str) -> str:
    return printable(text.replace("\n", " ")).replace("|", "\\|")
