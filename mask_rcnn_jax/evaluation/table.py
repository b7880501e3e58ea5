"""Metrics as a table to read."""

from collections.abc import Mapping

_WIDTH = 120  # characters
_KINDS = ("bbox", "segm")


def format_table(metrics: Mapping[str, float]) -> str:
    """The metrics of `evaluation.evaluate`, a line for boxes and one for masks, then AP by class.

    Undefined values are shown as "-"; a single class gets no line of its own.
    """
    kinds = [kind for kind in _KINDS if f"{kind}/AP" in metrics]
    names = [name.partition("/")[2] for name in metrics if name.startswith(f"{kinds[0]}/")] if kinds else []
    overall = [name for name in names if "/" not in name]
    classes = [name.partition("/")[2] for name in names if "/" in name]
    lines = ["     " + "".join(f"{name:>7}" for name in overall)]
    lines += [f"{kind:5}" + "".join(_value(metrics[f"{kind}/{name}"]) for name in overall) for kind in kinds]
    if len(classes) > 1:
        lines += ["", *_class_lines(metrics, kinds, classes)]
    return "\n".join(lines)


def _class_lines(metrics: Mapping[str, float], kinds: list[str], classes: list[str]) -> list[str]:
    """AP by class, in as many columns as fit, read downwards."""
    longest = max(len("AP by class"), *(len(name) for name in classes))
    cells = [f"{name:{longest}}" + "".join(_value(metrics[f"{kind}/AP/{name}"]) for kind in kinds) for name in classes]
    header = f"{'AP by class':{longest}}" + "".join(f"{kind:>7}" for kind in kinds)
    columns = min(max(1, _WIDTH // (len(header) + 4)), len(cells))
    rows = -(-len(cells) // columns)
    columns = -(-len(cells) // rows)
    return ["    ".join([header] * columns), *("    ".join(cells[row::rows]) for row in range(rows))]


def _value(value: float) -> str:
    return f"{value:7.3f}" if value == value else f"{'-':>7}"
