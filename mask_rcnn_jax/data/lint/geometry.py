"""Checks of one annotation's box and mask against each other and against the image.

Boxes and extents are (x1, y1, x2, y2) in continuous pixels of the image, which covers [0, W] x [0, H].
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask_rcnn_jax.data.records.entries import is_number, shown
from mask_rcnn_jax.data.records.masks import to_rle
from mask_rcnn_jax.data.records.rasterise import polygon
from mask_rcnn_jax.rle import area_of, checked_rle_and_runs

Box = tuple[float, float, float, float]

_SLACK = 1.0  # pixels: what rounding leaves outside of the image
_BOX_SLACK = 2.0  # pixels, or 5 % of the box's side: where a side of a box may lie beside the mask's
_BOX_SLACK_SHARE = 0.05
_LEAST_IOU = 0.5
_THIN = 2.0  # pixels


@dataclass
class Mask:
    """A checked mask: its problems (code, message), and extent and area where it is whole."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    extent: Box | None = None
    area: float | None = None


def check_annotation(annotation: dict[str, Any], height: int, width: int) -> tuple[list[tuple[str, str]], float | None]:
    """Problems (code, message) of an annotation in an image of `height` x `width`, and its mask's area in pixels."""
    box, problems = _check_box(annotation.get("bbox"), height, width)
    segmentation, is_crowd = annotation.get("segmentation"), bool(annotation.get("iscrowd", 0))
    if isinstance(segmentation, dict):
        mask = _check_rle(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        mask = _check_polygons(segmentation, height, width)
        if is_crowd:
            problems.append(("crowd-polygon", "is a crowd given as polygons"))
    else:
        mask = Mask([("mask-missing", "has neither polygons nor an RLE")])
    problems += mask.problems
    if mask.extent is not None:
        x1, y1, x2, y2 = mask.extent
        if min(x2 - x1, y2 - y1) < _THIN and not is_crowd:
            problems.append(("mask-thin", f"has a mask {_pixels(x2 - x1)} x {_pixels(y2 - y1)} pixels large"))
        if box is not None:
            problems += _compare(box, _clip(mask.extent, height, width))
    return problems, mask.area


def _check_box(bbox: Any, height: int, width: int) -> tuple[Box | None, list[tuple[str, str]]]:
    """The box inside the image, None where there is none, and what is wrong with it."""
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))
    if not numbers:
        return None, [("box-empty", f"has the box {shown(bbox)}, which is not four finite numbers")]
    x, y, w, h = (float(value) for value in bbox)
    whole = (x, y, x + w, y + h)
    box = _clip(whole, height, width)
    if w <= 0 or h <= 0 or box[2] <= box[0] or box[3] <= box[1]:
        return None, [("box-empty", f"has the box {shown(bbox)} in an image {width} x {height}")]
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > _SLACK:
        return box, [("box-beyond", f"has a box that reaches {_pixels(beyond)} pixels outside the image")]
    return box, []


def _check_rle(rle: dict[str, Any], height: int, width: int) -> Mask:
    if rle.get("size") != [height, width]:
        message = f"has an RLE of size {shown(rle.get('size'))} in an image of {[height, width]}"
        return Mask([("rle-size", message)])
    try:
        _, runs = checked_rle_and_runs(rle, height, width)
    except ValueError as error:
        return Mask([("rle-broken", f"has an RLE that cannot be used: {error}")])
    ends = np.cumsum(runs)
    starts, ends = (ends - runs)[1::2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not ends.size:
        return Mask([("mask-empty", "has an RLE without pixels")])
    # Runs go down the columns; one that goes on in the next column touches both edges of the image.
    top, bottom = starts % height, (ends - 1) % height
    wraps = (starts // height < (ends - 1) // height).any()
    y1, y2 = (0, height) if wraps else (int(top.min()), int(bottom.max()) + 1)
    extent = (float(starts[0] // height), float(y1), float((ends[-1] - 1) // height + 1), float(y2))
    return Mask([], extent, float((ends - starts).sum()))


def _check_polygons(polygons: list[Any], height: int, width: int) -> Mask:
    mask, parts = Mask(), []
    for number, coordinates in enumerate(polygons):
        name = f"polygon {number} " if len(polygons) > 1 else "a polygon "
        try:
            part = _flat(coordinates).reshape(-1, 2)
        except ValueError as error:
            mask.problems.append(("polygon-broken", f"has {name}that cannot be used: {error}"))
            continue
        problem = _outside(part, name, height, width)
        mask.problems += [problem] if problem else []
        parts.append(part)
    if any(code != "polygon-beyond" for code, _ in mask.problems):
        return mask
    corners = np.concatenate(parts)
    mask.extent = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
    mask.area = float(sum(_area(part) for part in parts))
    # A polygon that crosses itself may add up to nothing, so the pixels decide.
    if mask.area < 1:
        rle: Any = to_rle([part.ravel() for part in parts], height, width)
        mask.area = float(area_of(rle))
        if mask.area == 0:
            return Mask([*mask.problems, ("mask-empty", "has polygons that cover no pixel")])
    return mask


def _flat(coordinates: Any) -> np.ndarray:
    """The polygon (x1, y1, x2, ...); this project also reads pairs, COCO's own tools do not."""
    if isinstance(coordinates, list) and list in map(type, coordinates):
        raise ValueError("it is no list of coordinates")
    return polygon(coordinates)


def _outside(part: np.ndarray, name: str, height: int, width: int) -> tuple[str, str] | None:
    low, high = part.min(axis=0), part.max(axis=0)
    if high[0] <= 0 or high[1] <= 0 or low[0] >= width or low[1] >= height:
        return "polygon-outside", f"has {name}outside its image of {width} x {height}"
    beyond = max(-low.min(), high[0] - width, high[1] - height)
    if beyond > _SLACK:
        return "polygon-beyond", f"has {name}that reaches {_pixels(beyond)} pixels outside the image"
    return None


def _compare(box: Box, extent: Box) -> list[tuple[str, str]]:
    """Describe how a box disagrees with the smallest box around the mask, both within the image."""
    overlap = max(min(box[2], extent[2]) - max(box[0], extent[0]), 0.0) * max(
        min(box[3], extent[3]) - max(box[1], extent[1]), 0.0
    )
    union = _box_area(box) + _box_area(extent) - overlap
    shown = f"{_corners(box)}, its mask lies in {_corners(extent)}"
    sides = (box[2] - box[0], box[3] - box[1]) * 2
    pairs = zip(box, extent, sides, strict=True)
    if not any(abs(a - b) > max(_BOX_SLACK, _BOX_SLACK_SHARE * side) for a, b, side in pairs):
        return []
    if overlap < _LEAST_IOU * union:
        return [("box-elsewhere", f"has its box at {shown}")]
    return [("box-loose", f"has its box at {shown}")]


def _clip(box: Box, height: int, width: int) -> Box:
    x1, y1, x2, y2 = box
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), max(min(x2, width), 0.0), max(min(y2, height), 0.0)


def _area(corners: np.ndarray) -> float:
    x, y = (corners - corners[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _box_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _corners(box: Box) -> str:
    return f"({', '.join(_pixels(value) for value in box)})"


def _pixels(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if abs(value) < 1e7 else f"{value:.3g}"
