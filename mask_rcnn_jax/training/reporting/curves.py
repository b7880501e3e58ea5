"""The learning curves of a run as one picture, drawn from its `metrics.jsonl`."""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mask_rcnn_jax.disk.files import replacing

FILE = "curves.png"
_MOST_POINTS = 2000  # of a curve; longer ones are averaged in groups

_DASHED = ("RoIs", "average")  # beside anchors and the weights themselves

Curves = dict[str, tuple[list[int], list[float]]]  # steps and values by name


@dataclass(frozen=True)
class _Panel:
    title: str
    label: Callable[[str], str | None]  # of a metric; None: not in this panel
    log: bool = False
    bold: str = ""  # label of the curve that counts most


def draw_curves(workdir: Path) -> str | None:
    """Writes `workdir/curves.png` anew; returns what went wrong with the files, if anything did.

    A run must not end because its picture could not be written.
    """
    try:
        curves = read_curves(workdir / "metrics.jsonl")
        if not curves:
            return None
        figure = draw(curves, workdir.resolve().name)
        with replacing(workdir / FILE) as part, warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")  # in the run's name; boxes stand in
            figure.savefig(part, format="png", dpi=100)
    except OSError as error:
        return f"{workdir / FILE} cannot be written ({error.strerror or error})"
    return None


def read_curves(metrics: Path) -> Curves:
    """Steps and values of each metric in the file; what was not finite is left out."""
    curves: Curves = {}
    for text in metrics.read_text().splitlines():
        line = json.loads(text)
        for name, value in line.items():
            if name != "step" and value is not None:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return curves


def draw(curves: Curves, title: str) -> Figure:
    """Six panels: losses, AP, gradient norms, learning rate, what was matched, speed."""
    figure = Figure(figsize=(15, 8.5))
    FigureCanvasAgg(figure)
    # Fixed, as a layout that is computed takes as long as the drawing.
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.065, top=0.9, wspace=0.16, hspace=0.3)
    end = max(steps[-1] for steps, _ in curves.values())
    printable = "".join(letter if letter.isprintable() else "?" for letter in title)
    figure.suptitle(f"{printable}, step {end}", parse_math=False)
    for panel, axes in zip(_PANELS, figure.subplots(2, 3).flat, strict=True):
        shown = {label: curve for name, curve in curves.items() if (label := panel.label(name)) is not None}
        _draw_panel(axes, panel, shown)
        axes.set_xlim(0, max(end, 1))
    return figure


def _draw_panel(axes: Axes, panel: _Panel, curves: Mapping[str, tuple[list[int], list[float]]]) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    if not curves:
        axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", va="center", color="gray")
        axes.set_yticks([])
        return
    for label, curve in curves.items():
        steps, values = _thinned(*curve)
        (line,) = axes.plot(steps, values, label=label, linewidth=1.2, markersize=3)
        if len(steps) < 30:  # a single point makes no line
            line.set_marker("o")
        if label == panel.bold:
            line.set(color="black", linewidth=2.0, zorder=3)
        if label.startswith(_DASHED):
            line.set_linestyle("--")
    if panel.log and all(value > 0 for _, values in curves.values() for value in values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(fontsize=8, framealpha=0.7, ncols=2 if len(curves) > 6 else 1)


def _thinned(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Means of groups of neighbours where there are more points than a picture shows."""
    group = math.ceil(len(steps) / _MOST_POINTS)
    starts = range(0, len(steps), group)
    means = [sum(values[start : start + group]) / len(values[start : start + group]) for start in starts]
    return [steps[min(start + group, len(steps)) - 1] for start in starts], means


def _losses(name: str) -> str | None:
    return "total" if name == "loss" else name.removeprefix("loss/") if name.startswith("loss/") else None


def _ap(name: str) -> str | None:
    """AP and AP50 of boxes, masks and keypoints, also of averaged weights; not of single classes and sizes."""
    return name.replace("/", " ") if name.rpartition("/")[2] in ("AP", "AP50") else None


def _gradients(name: str) -> str | None:
    return (
        "all" if name == "gradient_norm" else name.removeprefix("gradient_norm/") if "gradient_norm" in name else None
    )


def _matched(name: str) -> str | None:
    for kind, label in (("anchors", "anchors"), ("rois", "RoIs")):
        if name.startswith(f"histogram/{kind}_by_level/"):
            return f"{label} {name.rpartition('/')[2]}"
    return None


_PANELS = (
    _Panel("losses", _losses, log=True, bold="total"),
    _Panel("validation", _ap),
    _Panel("gradient norm", _gradients, log=True, bold="all"),
    _Panel("learning rate", lambda name: name if name == "learning_rate" else None),
    _Panel("foreground an image, by level", _matched),
    _Panel("images a second", lambda name: name if name == "images_per_second" else None),
)
