"""The one door to pycocotools' rasteriser and decoder, which trust what they are handed.

pycocotools walks a polygon's outline in fifths of a pixel and keeps every step: a corner at 1e7 takes gigabytes, one at
1e9 overflows. It reads and writes out of bounds where a run-length code (RLE) does not cover its image. Here polygons
and RLEs are checked first, and outlines too long to walk are rasterised from their crossings of the image's columns,
to the same pixels.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data.entries import shown

RLE = dict[str, Any]

MOST_COORDINATES = 2**20  # of a polygon: each costs time at every visit of its image

_FIFTHS = 5  # pycocotools' steps a pixel
_WALKED = 2**20  # steps that pycocotools may take: 16 MB
_AT_ONCE = 2**18  # crossings that are computed at a time
_MERGED = 64  # RLEs at a time
_FARTHEST = 2.0**40  # pixels: corners beyond are moved there, where products of coordinates are still exact
# Negative numbers of more than six digits, whose sign pycocotools shifts out of 32 bits; it writes none of an image
# below 2**29 pixels.
_MISREAD = re.compile(rb"[P-o]{6}[@-O]")
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
        return _union(_API.frPyObjects(polygons, height, width))
    return _union([_rle_of_polygon(coordinates, height, width) for coordinates in polygons])


def checked_rle(rle: Any, height: int, width: int) -> RLE:
    """Return the RLE with compressed bytes as counts, whether its counts are a list, text or bytes.

    Raises ValueError with the reason where it is not one of an image of `height` x `width` pixels.
    """
    return checked_rle_and_runs(rle, height, width)[0]


def checked_rle_and_runs(rle: Any, height: int, width: int) -> tuple[RLE, Int[np.ndarray, " runs"]]:
    """Return what `checked_rle` does, and the lengths of its runs."""
    if not isinstance(rle, dict):
        raise ValueError("it is not an object of size and counts")
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not _NUMBERS.issuperset(map(type, size)):
        raise ValueError("its size is not two numbers")
    if list(size) != [height, width]:
        raise ValueError(f"its size is {shown(size[0])} x {shown(size[1])}, the image's {height} x {width}")
    if isinstance(counts, list):
        runs = _listed_runs(counts, height * width)
    else:
        counts = counts.encode(errors="replace") if isinstance(counts, str) else counts
        if not isinstance(counts, bytes):
            raise ValueError("its counts are neither a list nor text")
        runs = run_lengths(counts)
    # The largest first: the sum of absurd runs would overflow.
    if runs.size == 0 or runs.max() > height * width or runs.sum() != height * width:
        raise ValueError(f"its runs do not cover the image's {height * width} pixels")
    rle = _compressed(runs, height, width) if isinstance(counts, list) else {"size": [height, width], "counts": counts}
    if _MISREAD.search(rle["counts"]):
        raise ValueError("its counts have more digits than pycocotools can read")
    return rle, runs


def run_lengths(counts: bytes) -> Int[np.ndarray, " runs"]:
    """Lengths of the alternating background and foreground runs of COCO's compressed RLE, column by column.

    Raises ValueError for bytes that are no RLE.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("not a compressed RLE")
    # Each number is a little-endian string of 5-bit digits; bit 5 marks that another digit follows, bit 4 of the last
    # digit is the sign. From the fourth on, numbers are differences to the last but one.
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 8:
        raise ValueError("not a compressed RLE")
    place = np.arange(codes.size) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * digits), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("not a compressed RLE")
    return values


def _listed_runs(counts: list[Any], pixels: int) -> Int[np.ndarray, " runs"]:
    if not {int}.issuperset(map(type, counts)):
        raise ValueError("its counts are not all whole numbers")
    if counts and not 0 <= min(counts) <= max(counts) <= pixels:
        raise ValueError(f"its runs do not cover the image's {pixels} pixels")
    return np.array(counts, np.int64)


def _union(rles: list[RLE]) -> RLE:
    """The union of RLEs, in groups: one after the other each would walk through the runs of all before it."""
    while len(rles) > _MERGED:
        rles = [_API.merge(rles[start : start + _MERGED]) for start in range(0, len(rles), _MERGED)]
    return _API.merge(rles)


def _compressed(runs: Int[np.ndarray, " runs"], height: int, width: int) -> RLE:
    return _API.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


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
    return _compressed(np.diff(changes, prepend=0, append=height * width), height, width)


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
