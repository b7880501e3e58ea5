"""Outlines of annotated objects as polygons inside the image, with the objects made of them.

A polygon here is an array [P, 2] of (x, y); all coordinates are continuous pixels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mask_rcnn_jax.data.convert.source import Case, Instance
from mask_rcnn_jax.data.records.entries import is_number
from mask_rcnn_jax.data.records.masks import to_rle
from mask_rcnn_jax.data.records.rasterise import MOST_COORDINATES
from mask_rcnn_jax.rle import area_of, encode_bitmap

Polygon = Float[np.ndarray, "P 2"]

_SAGITTA = 0.05  # pixels by which a side of a polygon may leave the curve that it stands for
_SLACK = 1.0  # pixels: what annotation tools leave outside by rounding is cut off without a word
_FARTHEST = 1e9  # pixels: coordinates beyond are no annotator's
_MOST_CORNERS = 4096  # of an ellipse: enough for half-axes of 170,000 pixels


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Polygon:
    """The rectangle between two opposite corners."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def ellipse(centre_x: float, centre_y: float, radius_x: float, radius_y: float, turn: float = 0.0) -> Polygon:
    """The ellipse of these half-axes, turned by `turn` radians from x towards y; no side leaves it by .05 pixels.

    Its corners lie as far outside the curve as its sides lie inside, so that it covers as much.
    """
    radius = max(abs(radius_x), abs(radius_y), 1.0)
    count = min(max(16, math.ceil(math.pi / math.acos(1 - _SAGITTA / radius))), _MOST_CORNERS)
    angles = 2 * np.pi * np.arange(count) / count
    # A regular polygon covers sin(a) / a of its circle, where `a` is the angle of a side.
    grow = math.sqrt((2 * math.pi / count) / math.sin(2 * math.pi / count))
    x, y = grow * radius_x * np.cos(angles), grow * radius_y * np.sin(angles)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([centre_x + x * cos - y * sin, centre_y + x * sin + y * cos], axis=1)


def points(values: Any) -> Polygon:
    """Pairs of coordinates as a polygon. Raises ValueError for what are not finite numbers in pairs."""
    if not isinstance(values, list | tuple) or len(values) > MOST_COORDINATES // 2:
        raise ValueError("coordinates that are no list of pairs")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in values):
        raise ValueError("coordinates that do not come in pairs")
    if not all(is_number(value) and abs(value) <= _FARTHEST for pair in values for value in pair):
        raise ValueError("coordinates that are not numbers of pixels")
    return np.array(values, np.float64).reshape(-1, 2)


def instance_of_polygons(
    category: str, parts: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int, where: str
) -> tuple[Instance | None, list[Case]]:
    """The object that `parts` outline together, cut at the image's edges, and what was lost of it.

    None when nothing of it covers a pixel.
    """
    kept: list[np.ndarray] = []
    cases: list[Case] = []
    for part in parts:
        if len(part) < 3:
            cases.append(Case("polygons with fewer than three points, left out", where))
            continue
        beyond = max(-part.min(), (part - (width, height)).max())
        if beyond > _SLACK:
            cases.append(Case("polygons that reach outside their image, cut at its edges", where))
        inside = part if beyond <= 0 else _cut(part, height, width)
        if len(inside) >= 3:
            kept.append(np.round(inside, 3).ravel())
    if not kept or not area_of(to_rle(kept, height, width)):
        return None, [*cases, Case("objects that cover no pixel of their image, left out", where)]
    return Instance(category, kept), cases


def instance_of_bitmap(category: str, bitmap: Bool[np.ndarray, "H W"], iscrowd: bool = False) -> Instance:
    """The object that covers the pixels `bitmap`, as compressed RLE; fastest for arrays in Fortran's order."""
    return Instance(category, encode_bitmap(bitmap), iscrowd)


def _cut(polygon: Polygon, height: int, width: int) -> Float[np.ndarray, "Q 2"]:
    """The part of the polygon inside the image, by Sutherland and Hodgman: edge after edge of the image."""
    for axis, limit, sign in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        depth = sign * (polygon[:, axis] - limit)  # how far inside of this edge
        before, depth_before = np.roll(polygon, 1, axis=0), np.roll(depth, 1)
        crosses = (depth_before < 0) != (depth < 0)
        share = depth_before / np.where(crosses, depth_before - depth, 1)
        crossing = before + share[:, None] * (polygon - before)
        crossing[:, axis] = limit  # not a rounding error beside it
        # Where a side crosses the edge, the crossing precedes the side's end.
        both = np.stack([crossing, polygon], axis=1)
        polygon = both[np.stack([crosses, depth >= 0], axis=1)]
    return polygon
