"""The one door to pycocotools' rasteriser, which trusts what it is handed.

pycocotools walks a polygon's outline in fifths of a pixel and keeps every step: a corner at 1e7 takes gigabytes, one at
1e9 overflows. Here polygons are checked first, and outlines too long to walk are rasterised from their crossings of the
image's columns, to the same pixels.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask

from mask_rcnn_jax.rle import RLE, of_runs, union_of

MOST_COORDINATES = 2**20  # of a polygon: each costs time at every visit of its image

_FIFTHS = 5  # pycocotools' steps a pixel
_WALKED = 2**20  # steps that pycocotools may take: 16 MB
_AT_ONCE = 2**18  # crossings that are computed at a time
_FARTHEST = 2.0**40  # pixels: corners beyond are moved there, where products of coordinates are still exact
_NUMBERS = frozenset({int, float})
_API: Any = coco_mask  # its stubs know no polygons and no uncompressed RLE


def polygon(values: Any) -> Float[np.ndarray, " n"]:
    """Return the coordinates (x1, y1, x2, ...) of a polygon in an annotation file, flat or in pairs.

    Raises ValueError with the reason where there are no three points of finite numbers.
    """
    values = list(values) if isinstance(values, tuple) else values
    if isinstance(values, list) and values and all(type(pair) is list for pair in values):
        values = list(chain.from_iterable(values))
    if not isinstance(values, list):
        raise ValueError("it is no list of coordinates")
    if not _NUMBERS.issuperset(map(type, values)):
        raise ValueError("not all coordinates are numbers")
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"it has {len(values)} coordinates")
    if len(values) > MOST_COORDINATES:
        raise ValueError(f"it has {len(values)} coordinates, more than {MOST_COORDINATES}")
    try:
        coordinates = np.array(values, np.float64)
    except OverflowError:  # a whole number beyond all floats
        raise ValueError("not all coordinates are finite") from None
    return _bounded(coordinates)


def rle_of_polygons(polygons: Sequence[Any], height: int, width: int) -> RLE:
    """Rasterise the union of `polygons` to an image of `height` x `width` pixels, to the pixels of pycocotools.

    Polygons are arrays, or lists or tuples of numbers. Memory does not depend on where their corners lie.
    Raises ValueError for polygons of less than three points or that are not finite.
    """
    polygons = [_bounded(values) if hasattr(values, "__array__") else polygon(values) for values in polygons]
    if not polygons:
        raise ValueError("it has no polygons")
    if all(_is_short(coordinates) for coordinates in polygons):
        return union_of(_API.frPyObjects(polygons, height, width))
    return union_of([_rle_of_polygon(coordinates, height, width) for coordinates in polygons])


def _bounded(coordinates: Any) -> Float[np.ndarray, " n"]:
    coordinates = np.asarray(coordinates, np.float64).ravel()
    if coordinates.size < 6 or coordinates.size % 2:  # pycocotools takes four numbers for a box
        raise ValueError(f"it has {coordinates.size} coordinates")
    farthest = np.abs(coordinates).max()
    if not np.isfinite(farthest):
        raise ValueError("not all coordinates are finite")
    return coordinates if farthest <= _FARTHEST else coordinates.clip(-_FARTHEST, _FARTHEST)


def _is_short(coordinates: Float[np.ndarray, " n"]) -> bool:
    """Tell whether pycocotools walks the outline in at most `_WALKED` steps."""
    corners = coordinates.reshape(-1, 2)
    if _FIFTHS * 2 * np.abs(coordinates).max() * len(corners) <= _WALKED:
        return True
    sides = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
    return bool(np.abs(coordinates).max() < _WALKED and _FIFTHS * sides.sum() + 2 * len(corners) <= _WALKED)


def _rle_of_polygon(coordinates: Float[np.ndarray, " n"], height: int, width: int) -> RLE:
    if _is_short(coordinates):
        return _API.frPyObjects([coordinates], height, width)[0]
    # As pycocotools: corners are rounded to fifths of a pixel, and every other crossing of a column begins a run.
    corners = np.trunc(_FIFTHS * coordinates.reshape(-1, 2) + 0.5)
    starts, ends = corners, np.roll(corners, -1, axis=0)
    low, high = np.minimum(starts[:, 0], ends[:, 0]), np.maximum(starts[:, 0], ends[:, 0])
    # An outline crosses column x between its third and fourth fifth.
    first = np.maximum(np.ceil((low - 2) / _FIFTHS), 0).astype(np.int64)
    last = np.minimum(np.floor((high - 3) / _FIFTHS), width - 1).astype(np.int64)
    total = np.cumsum(np.maximum(last - first + 1, 0))
    changes, found = np.zeros(0, np.int64), []
    for begin in range(0, int(total[-1]), _AT_ONCE):
        crossing = np.arange(begin, min(begin + _AT_ONCE, int(total[-1])))
        side = np.searchsorted(total, crossing, "right")
        column = last[side] - (total[side] - 1 - crossing)
        row = _crossing_rows(starts[side], ends[side], column, height)
        found.append(column * height + row)
        if len(found) * _AT_ONCE > max(changes.size, 8 * _AT_ONCE):  # seldom, or it would be done over and over
            changes, found = _odd(np.concatenate([changes, *found])), []
    changes = _odd(np.concatenate([changes, *found]))
    changes = changes[changes < height * width]
    return of_runs(np.diff(changes, prepend=0, append=height * width), height, width)


def _crossing_rows(
    starts: Float[np.ndarray, "c 2"], ends: Float[np.ndarray, "c 2"], column: Int[np.ndarray, " c"], height: int
) -> Int[np.ndarray, " c"]:
    """The first row below the point where each side crosses its column."""
    run, rise = np.abs(ends - starts).T
    flat = run >= rise
    flip = np.where(flat, starts[:, 0] > ends[:, 0], starts[:, 1] > ends[:, 1])[:, None]
    (x1, y1), (x2, y2) = np.where(flip, ends, starts).T, np.where(flip, starts, ends).T
    before = _FIFTHS * column + 2.0
    slope = np.where(flat, y2 - y1, x2 - x1) / np.where(flat, run, np.maximum(rise, 1))
    # Flat sides have one step a fifth of x; steep ones one a fifth of y, of which the crossing one is searched for.
    here, there = (np.trunc(y1 + slope * (x - x1) + 0.5) for x in (before, before + 1))
    steep = np.where(flat, 1.0, slope)
    step = np.ceil((before + 0.5 - x1) / steep)

    def is_beyond(step: np.ndarray) -> np.ndarray:
        beyond = np.trunc(x1 + steep * step + 0.5) > before
        return np.where(steep > 0, beyond, ~beyond)

    step = np.where(is_beyond(step - 1), step - 1, np.where(is_beyond(step), step, step + 1))
    fifths = np.where(flat, np.minimum(here, there), y1 + step - 1)
    return np.ceil(np.clip((fifths + 0.5) / _FIFTHS - 0.5, 0, height)).astype(np.int64)


def _odd(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Those that occur an odd number of times, ascending."""
    values, counts = np.unique(values, return_counts=True)
    return values[counts % 2 == 1]
