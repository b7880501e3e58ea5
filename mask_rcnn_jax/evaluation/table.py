"""Metrics as a table to read."""

from collections.abc import Mapping

_WIDTH = 120  # characters
_KINDS = ("bbox", "segm", "keypoints")


def format_table(metrics: Mapping[str, float]) -> str:
    """The metrics of `evaluation.evaluate`, a line for boxes and one for masks, keypoints below, panoptic quality, then
    AP by class.

    Undefined values are shown as "-"; a single class gets no line of its own.
    """
    kinds = [kind for kind in _KINDS if f"{kind}/AP" in metrics]
    label = max((len(kind) + 1 for kind in kinds), default=0)
    lines: list[str] = []
    for kind in kinds:
        names = [name for name in _names(metrics, kind) if "/" not in name]
        header = " " * label + "".join(f"{name:>7}" for name in names)
        if header not in lines:
            lines += ["", header] if lines else [header]
        lines.append(f"{kind:{label}}" + "".join(_value(metrics[f"{kind}/{name}"]) for name in names))
    lines += _panoptic_lines(metrics)
    classes = [name.partition("/")[2] for name in _names(metrics, kinds[0]) if "/" in name] if kinds else []
    if len(classes) > 1:
        lines += ["", *_class_lines(metrics, kinds, classes)]
    return "\n".join(lines)


def _names(metrics: Mapping[str, float], kind: str) -> list[str]:
    return [name.partition("/")[2] for name in metrics if name.startswith(f"{kind}/")]


def _panoptic_lines(metrics: Mapping[str, float]) -> list[str]:
    """Panoptic quality of all categories, of things and of stuff, and the mean IoU of kinds of stuff."""
    lines: list[str] = []
    if "panoptic/PQ" in metrics:
        lines += ["", " " * 15 + "".join(f"{name:>7}" for name in ("PQ", "SQ", "RQ"))]
        for suffix in ("", "_things", "_stuff"):
            values = [_value(metrics[f"panoptic/{name}{suffix}"]) for name in ("PQ", "SQ", "RQ")]
            lines.append(f"{f'panoptic{suffix}'.replace('_', ' '):15}" + "".join(values))
    if "stuff/mIoU" in metrics:
        lines += ["", f"{'stuff mIoU':15}" + _value(metrics["stuff/mIoU"])]
    return lines


def _class_lines(metrics: Mapping[str, float], kinds: list[str], classes: list[str]) -> list[str]:
    """AP by class, in as many columns as fit, read downwards."""
    longest = max(len("AP by class"), *(len(name) for name in classes))
    widths = {kind: max(7, len(kind) + 2) for kind in kinds}
    cells = [
        f"{name:{longest}}" + "".join(_value(metrics[f"{kind}/AP/{name}"], width) for kind, width in widths.items())
        for name in classes
    ]
    header = f"{'AP by class':{longest}}" + "".join(f"{kind:>{width}}" for kind, width in widths.items())
    columns = min(max(1, _WIDTH // (len(header) + 4)), len(cells))
    rows = -(-len(cells) // columns)
    columns = -(-len(cells) // rows)
    return ["    ".join([header] * columns), *("    ".join(cells[row::rows]) for row in range(rows))]


def _value(value: float, width: int = 7) -> str:
    return f"{value:{width}.3f}" if value == value else f"{'-':>{width}}"
