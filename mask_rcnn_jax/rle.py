"""Masks as run-length codes (COCO's RLE): the one door to pycocotools' coder, which trusts what it is handed.

pycocotools reads and writes out of bounds where a code does not cover its image. Here codes of others are checked
first. Runs go down the columns, background first.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

from mask_rcnn_jax.ranges import shown

RLE = dict[str, Any]  # "size" (height, width) and "counts": compressed, in bytes, or as text where it goes into JSON
Window = tuple[int, int, int, int]  # (x1, y1, x2, y2), whole pixels

_MERGED = 64  # RLEs at a time
# Negative numbers of more than six digits, whose sign pycocotools shifts out of 32 bits; it writes none of an image
# below 2**29 pixels.
_MISREAD = re.compile(rb"[P-o]{6}[@-O]")
_NUMBERS = frozenset({int, float})
_API: Any = coco_mask  # its stubs know no dict and no uncompressed RLE


def encode_bitmap(bitmap: Bool[np.ndarray, "H W"]) -> RLE:
    """Encode a bitmap; fastest for arrays in Fortran's order."""
    return _API.encode(np.asfortranarray(bitmap).view(np.uint8))


def encode_window(columns: Bool[np.ndarray, "w h"], x1: int, y1: int, size: tuple[int, int]) -> RLE:
    """The RLE of an image of `size` (height, width) that is 0 but for the window at (x1, y1), given transposed."""
    height, width = size
    w, h = columns.shape
    # A zero after each column ends its last run, as the pixels below and above the window would.
    separated = np.zeros((w, h + 1), bool)
    separated[:, :h] = columns
    flat = separated.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        changes = np.concatenate([[0], changes])
    column, row = np.divmod(changes, h + 1)
    positions = (x1 + column) * height + y1 + row
    # Where the window is as high as the image, a run may go on in the next column.
    joined = np.flatnonzero(positions[1:] == positions[:-1])
    positions = np.delete(positions, np.concatenate([joined, joined + 1]))
    counts = np.diff(positions, prepend=0, append=height * width)
    if counts.size > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return of_runs(counts, height, width)


def decode_bitmap(rle: RLE) -> Bool[np.ndarray, "H W"]:
    """Return the bitmap of the whole image."""
    return _API.decode(as_bytes(rle)).view(bool)


def decode_window(rle: RLE, window: Window) -> Bool[np.ndarray, "h w"]:
    """The RLE's bitmap inside `window` (x1, y1, x2, y2), whole pixels within the image."""
    x1, y1, x2, y2 = window
    height = rle["size"][0]
    edges = np.concatenate([[0], np.cumsum(run_lengths(as_bytes(rle)["counts"]))])
    runs = np.diff(np.clip(edges, x1 * height, x2 * height))
    foreground = np.arange(runs.size) % 2 == 1
    return np.repeat(foreground, runs).reshape(x2 - x1, height)[:, y1:y2].T


def window_of(rle: RLE) -> Window:
    """Return the smallest window around the pixels, (0, 0, 0, 0) where there are none."""
    x, y, width, height = (int(side) for side in _API.toBbox(as_bytes(rle)))
    return x, y, x + width, y + height


def cut_out(rle: RLE) -> tuple[Bool[np.ndarray, "h w"], Window]:
    """Return the bitmap inside its window, and that."""
    around = window_of(rle)
    return decode_window(rle, around), around


def area_of(rle: RLE) -> int:
    """Return the number of pixels."""
    return int(_API.area(as_bytes(rle)))


def union_of(rles: Sequence[RLE]) -> RLE:
    """Return the union of at least one, made on the runs."""
    # In groups: one after the other, each would walk through the runs of all before it.
    rles = [as_bytes(rle) for rle in rles]
    while len(rles) > _MERGED:
        rles = [_API.merge(rles[start : start + _MERGED]) for start in range(0, len(rles), _MERGED)]
    return rles[0] if len(rles) == 1 else _API.merge(rles)


def as_text(rle: RLE) -> RLE:
    """Return the RLE as JSON holds it."""
    counts = rle["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": text}


def as_bytes(rle: RLE) -> RLE:
    """Return the RLE as pycocotools takes it."""
    counts = rle["counts"]
    return {"size": rle["size"], "counts": counts.encode() if isinstance(counts, str) else counts}


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
    rle = of_runs(runs, height, width) if isinstance(counts, list) else {"size": [height, width], "counts": counts}
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


def of_runs(runs: Int[np.ndarray, " runs"], height: int, width: int) -> RLE:
    """Return the RLE of an image with these runs, the first of background."""
    return _API.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def _listed_runs(counts: list[Any], pixels: int) -> Int[np.ndarray, " runs"]:
    if not {int}.issuperset(map(type, counts)):
        raise ValueError("its counts are not all whole numbers")
    if counts and not 0 <= min(counts) <= max(counts) <= pixels:
        raise ValueError(f"its runs do not cover the image's {pixels} pixels")
    return np.array(counts, np.int64)
