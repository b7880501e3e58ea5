"""Rows of the conformance report, and the comparisons whose results they hold.

Shape letters: `n m` boxes of two programs, `h w` height and width. Every comparison gives a number that is 0 where two
programs agree and grows with their difference; NaN, which anything not finite leads to, is within no bound.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

MATCHING_IOU = 0.9  # boxes of one class that overlap less are not the same detection


@dataclass(frozen=True)
class Row:
    """How far one quantity of one stage lies from a reference."""

    source: str  # the reference's model
    stage: str
    quantity: str
    difference: float
    bound: float
    unit: str

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # false for NaN

    def __str__(self) -> str:
        relation = "within" if self.ok else "NOT within"
        return (
            f"{self.source}, {self.stage}: {self.quantity} differ by {self.difference:.3g} {self.unit},"
            f" {relation} {self.bound:.3g}"
        )


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two tensors over the largest magnitude in the reference."""
    ours, reference = _wide(ours), _wide(reference)
    if ours.shape != reference.shape:
        raise ValueError(f"shapes differ: {ours.shape} and {reference.shape}")
    if reference.size == 0:
        raise ValueError("nothing to compare")
    return _ratio(np.max(np.abs(_minus(ours, reference))), np.max(np.abs(reference)))


def largest_relative(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The worst `relative` of pairs (ours, reference)."""
    return _worst([relative(ours, reference) for ours, reference in pairs])


def relative_values(ours: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """The worst relative difference of numbers with the same names, such as losses."""
    if set(ours) != set(reference) or not reference:
        raise ValueError(f"names differ: {sorted(ours)} and {sorted(reference)}")
    return _worst([relative(np.array([ours[name]]), np.array([reference[name]])) for name in reference])


def relative_norms(ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By name, the norm of the difference of two tensors over the norm of the reference."""
    if set(ours) != set(reference) or not reference:
        raise ValueError(f"names differ: {sorted(set(ours) ^ set(reference))}")
    norms = {}
    for name, expected in reference.items():
        a, b = _wide(ours[name]), _wide(expected)
        if a.shape != b.shape:
            raise ValueError(f"shapes of {name} differ: {a.shape} and {b.shape}")
        norms[name] = _ratio(np.linalg.norm(_minus(a, b)), np.linalg.norm(b))
    return norms


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image as a program lists them."""

    boxes: np.ndarray  # [n, 4] (x1, y1, x2, y2)
    scores: np.ndarray  # [n], in the program's order
    classes: np.ndarray  # [n]


@dataclass(frozen=True)
class BoxDifference:
    """What tells two lists of boxes apart."""

    coordinates: float  # pixels, the largest of matched pairs
    scores: float  # the largest of matched pairs
    unmatched: float  # fraction of the longer list
    order: float  # the largest score difference between two matched boxes that stand in another order


def match_boxes(ours: Boxes, reference: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Indices (ours, reference) of pairs: boxes of one class, one to one, of the largest sum of IoU."""
    iou = pairwise_iou(_wide(ours.boxes), _wide(reference.boxes))
    iou = np.where(ours.classes[:, None] == reference.classes[None], np.nan_to_num(iou), 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    paired = iou[rows, columns] >= MATCHING_IOU
    return rows[paired], columns[paired]


def compare_boxes(images: Iterable[tuple[Boxes, Boxes]]) -> BoxDifference:
    """The worst difference of the lists (ours, reference) of several images; `unmatched` counts them together."""
    worst = {"coordinates": [], "scores": [], "order": []}
    unmatched = total = 0
    for ours, reference in images:
        rows, columns = match_boxes(ours, reference)
        longer = max(len(ours.boxes), len(reference.boxes))
        unmatched, total = unmatched + longer - len(rows), total + longer
        if len(rows):
            scores = _wide(reference.scores)[columns]
            worst["coordinates"].append(np.max(np.abs(_wide(ours.boxes)[rows] - _wide(reference.boxes)[columns])))
            worst["scores"].append(np.max(np.abs(_wide(ours.scores)[rows] - scores)))
            # `rows` ascend, so this is the reference's score along our order; it should never rise.
            worst["order"].append(np.max(scores - np.minimum.accumulate(scores)))
    if total == 0:
        raise ValueError("nothing to compare")
    return BoxDifference(unmatched=unmatched / total, **{name: _worst(values) for name, values in worst.items()})


def masks_iou(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """IoU of each pair of bitmaps [n, h, w]; 1 where both are empty."""
    if ours.shape != reference.shape:
        raise ValueError(f"shapes differ: {ours.shape} and {reference.shape}")
    ours, reference = ours.astype(bool), reference.astype(bool)
    intersection, union = (ours & reference).sum((1, 2)), (ours | reference).sum((1, 2))
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [n, m] of boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0.0)


def box_rows(source: str, stage: str, images: Iterable[tuple[Boxes, Boxes]]) -> list[Row]:
    """Rows of lists of boxes (ours, reference), one pair an image."""
    difference = compare_boxes(images)
    return [
        Row(source, stage, "coordinates of matched boxes", difference.coordinates, 0.05, "px"),
        Row(source, stage, "boxes without a match", difference.unmatched, 0.005, "of all"),
        Row(source, stage, "scores of matched boxes", difference.scores, 5e-4, "absolute"),
        Row(source, stage, "order, by score", difference.order, 5e-4, "absolute"),
    ]


def mean_mask_row(source: str, stage: str, iou: np.ndarray) -> Row:
    return Row(source, stage, "pasted masks, 1 - mean IoU", float(1 - np.mean(iou)), 0.001, "IoU")


def mask_rows(source: str, stage: str, iou: np.ndarray) -> list[Row]:
    """Rows of the IoU of pasted masks."""
    smallest = Row(source, stage, "pasted masks, 1 - smallest IoU", float(1 - np.min(iou)), 0.02, "IoU")
    return [mean_mask_row(source, stage, iou), smallest]


def markdown(rows: Iterable[Row]) -> str:
    """An aligned table."""
    header = ("source", "stage", "quantity", "largest difference", "bound", "unit", "holds")
    cells = [header]
    for row in rows:
        numbers = (f"{row.difference:.2g}", f"{row.bound:.2g}")
        cells.append((row.source, row.stage, row.quantity, *numbers, row.unit, "yes" if row.ok else "NO"))
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


def _ratio(difference: float, magnitude: float) -> float:
    """`difference` relative to `magnitude`; infinite where the reference is 0 and ours is not."""
    if not np.isfinite(difference) or not np.isfinite(magnitude):
        return float("nan")
    if magnitude == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / magnitude)


def _minus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinity minus infinity is the NaN that is wanted
        return a - b


def _worst(values: list[float]) -> float:
    # NumPy's maximum, unlike Python's, passes NaN on.
    return float(np.max(values)) if values else float("nan")
