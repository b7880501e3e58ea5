"""Ground-truth masks as fixed-size grids of coverage.

A segmentation is either polygons, a list of arrays (x1, y1, x2, y2, ...), or an RLE, a dict of "size" (height, width)
and "counts" (COCO's compressed bytes), both in pixels of the original image. `C` is the side of a grid.

Grids are cut in original pixels: coverage of an instance's rectangle does not change when the image is resized, so the
resized bitmap is never made.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mask_rcnn_jax.data.records.rasterise import rle_of_polygons
from mask_rcnn_jax.rle import RLE, checked_rle, decode_window, run_lengths

Segmentation = Sequence[np.ndarray] | RLE

_SUPERSAMPLING = 2  # polygon pixels per grid cell and axis
_VISIBLE_SIDE = 112  # pixels across a region whose polygons are searched for their extent


def to_rle(segmentation: Sequence[Any] | RLE, height: int, width: int) -> RLE:
    """The segmentation of an image of `height` x `width` pixels as one RLE, rasterised as pycocotools does.

    Also takes what a file holds: polygons as lists, counts as text or as a list. Raises ValueError with the reason for
    an RLE of another size or of counts that cannot be decoded, and for polygons of less than three points or of
    coordinates that are not finite.
    """
    if isinstance(segmentation, dict):
        return checked_rle(segmentation, height, width)
    return rle_of_polygons(segmentation, height, width)


def coverage(segmentation: Segmentation, region: Float[np.ndarray, "4"], size: int) -> UInt8[np.ndarray, "size size"]:
    """Share of each of `size` x `size` equal cells of `region` (x1, y1, x2, y2) that is covered, times 255.

    Exact for RLE; polygons are rasterised at twice the grid's resolution.
    """
    if not isinstance(segmentation, dict):
        side = size * _SUPERSAMPLING
        segmentation, region = _rasterise(segmentation, region, (side, side)), np.array([0, 0, side, side], np.float32)
    share = _rle_coverage(segmentation, region, (size, size))
    return np.clip(share * 255 + 0.5, 0, 255).astype(np.uint8)


def bitmap(
    segmentation: Segmentation, region: Float[np.ndarray, "4"], size: tuple[int, int]
) -> Bool[np.ndarray, "{size[0]} {size[1]}"]:
    """Rasterise the segmentation on `size` (rows, columns) equal cells of `region`.

    By at least half for RLE; polygons are rasterised with cells for pixels.
    """
    if isinstance(segmentation, dict):
        return _rle_coverage(segmentation, region, size) >= 0.5
    return decode_window(_rasterise(segmentation, region, size), (0, 0, size[1], size[0]))


def visible_box(segmentation: Segmentation, region: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"] | None:
    """The smallest box around what lies inside `region`, or None when nothing does.

    To the pixel for RLE, to 1/112 of the region for polygons.
    """
    if isinstance(segmentation, dict):
        window = _whole_pixels(region, segmentation["size"])
        bitmap, origin, pixel = decode_window(segmentation, window), np.array(window[:2]), np.ones(2)
    else:
        side = _VISIBLE_SIDE
        bitmap = decode_window(_rasterise(segmentation, region, (side, side)), (0, 0, side, side))
        origin, pixel = region[:2], (region[2:] - region[:2]) / side
    columns, rows = np.flatnonzero(bitmap.any(axis=0)), np.flatnonzero(bitmap.any(axis=1))
    if columns.size == 0:
        return None
    low = origin + pixel * (columns[0], rows[0])
    high = origin + pixel * (columns[-1] + 1, rows[-1] + 1)
    box = np.concatenate([np.maximum(low, region[:2]), np.minimum(high, region[2:])]).astype(np.float32)
    return box if (box[2:] > box[:2]).all() else None


def _whole_pixels(region: np.ndarray, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The smallest window of whole pixels around `region`, within an image of `size` (height, width)."""
    limit = np.array([size[1], size[0]])
    # Rounding may leave a thin region just outside: the window keeps at least a pixel.
    low = np.clip(np.floor(region[:2]).astype(int), 0, limit - 1)
    high = np.clip(np.ceil(region[2:]).astype(int), low + 1, limit)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _rle_coverage(rle: RLE, region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[rows, columns] share of each cell of `region` that is foreground, from the runs alone: no bitmap is made.

    Foreground pixels in front of a position in the column-major image are a piecewise linear function of it, whose
    differences give the coverage of a stretch of a column; sums over columns do the same along the rows.
    """
    ends = np.cumsum(run_lengths(rle["counts"]))
    foreground = np.repeat(np.cumsum(np.diff(ends, prepend=0)[1::2]), 2)
    positions = np.concatenate([[0], ends])
    counts = np.concatenate([[0, 0], foreground])[: positions.size]

    x1, _, x2, _ = _whole_pixels(region, rle["size"])
    ys = np.linspace(region[1], region[3], size[0] + 1)
    column_starts = np.arange(x1, x2)[:, None] * rle["size"][0]
    in_column = np.diff(np.interp(column_starts + ys, positions, counts), axis=1)  # [pixel columns, rows]

    xs = np.linspace(region[0], region[2], size[1] + 1) - x1
    column = np.minimum(xs.astype(int), x2 - x1 - 1)
    before = np.concatenate([np.zeros((1, size[0])), np.cumsum(in_column, axis=0)])
    up_to_x = before[column] + (xs - column)[:, None] * in_column[column]  # [columns + 1, rows]
    cell_area = (xs[-1] - xs[0]) * (ys[-1] - ys[0]) / (size[0] * size[1])
    return np.diff(up_to_x, axis=0).T / cell_area


def _rasterise(polygons: Sequence[np.ndarray], region: np.ndarray, size: tuple[int, int]) -> RLE:
    """The union of `polygons` as an RLE of `size` (height, width) pixels over `region`."""
    x1, y1, x2, y2 = (float(value) for value in region)
    scale, origin = np.array([size[1] / (x2 - x1), size[0] / (y2 - y1)]), np.array([x1, y1])
    return to_rle([((polygon.reshape(-1, 2) - origin) * scale).ravel() for polygon in polygons], *size)
