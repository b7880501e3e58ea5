"""The report of a study as one picture, `study.png`."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def write_picture(report: Mapping[str, Any], title: str, file: Path) -> None:
    """Draw the report into a PNG file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")  # in a class's name; boxes stand in
        draw(report, title).savefig(file, format="png", dpi=100)


def draw(report: Mapping[str, Any], title: str) -> Figure:
    """Return a panel for each deciding metric: above, every seed by row, with mean and standard deviation; below, the
    differences to the first row with their intervals.
    """
    plan = report["plan"]
    names, metrics = [row["name"] for row in plan["rows"]], plan["metrics"]
    figure = Figure(figsize=(max(4.0, 1.5 + 0.8 * len(names)) * len(metrics), 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(title), parse_math=False)
    panels = figure.subplots(2, len(metrics), squeeze=False)
    for column, metric in enumerate(metrics):
        _draw_seeds(panels[0, column], report, names, metric)
        _draw_differences(panels[1, column], report, names, metric)
    return figure


def _draw_seeds(axes: Axes, report: Mapping[str, Any], names: Sequence[str], metric: str) -> None:
    _prepare(axes, names, metric)
    for place, name in enumerate(names):
        values = [cell["metrics"].get(metric) for cell in report["cells"][name].values()]
        found = [value for value in values if value is not None]
        axes.plot([place] * len(found), found, "o", color="tab:blue", alpha=0.5, markersize=5)
        spread = report["rows"][name][metric]
        if spread["mean"] is not None:
            deviation = spread["standard_deviation"] or 0.0
            axes.errorbar(place + 0.2, spread["mean"], yerr=deviation, fmt="s", color="black", capsize=4)


def _draw_differences(axes: Axes, report: Mapping[str, Any], names: Sequence[str], metric: str) -> None:
    _prepare(axes, names, f"difference to {names[0]}")
    axes.axhline(0, color="gray", linewidth=1)
    for one in report["comparisons"]:
        if (one["first"], one["metric"]) != (names[0], metric) or one["difference"] is None:
            continue
        place = names.index(one["second"])
        axes.plot([place], [one["difference"]], "s", color="black")
        if one["interval"] is not None:
            axes.vlines(place, *one["interval"], color="black")


def _prepare(axes: Axes, names: Sequence[str], title: str) -> None:
    axes.set_title(_plain(title), fontsize=11, parse_math=False)
    axes.set_xticks(range(len(names)), [_plain(name) for name in names], rotation=45, ha="right", parse_math=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
