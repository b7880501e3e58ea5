"""Masks of instances as run-length encodings of the whole image.

Only a window around each box is ever made: pasting and encoding take time in proportion to the instances' areas, not to
the image's. Windows are pasted on canvases of few sizes, so that few programs are compiled.

Shape letters: `n` detections of one image, `M` side of a predicted mask, `w h` sides of a window.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from mask_rcnn_jax.ops import PasteConvention, paste_masks
from mask_rcnn_jax.rle import RLE, as_text, encode_window

_SMALLEST_CANVAS = 64  # pixels
_CHUNK_PIXELS = 2**21  # pasted at once; larger windows one by one
_CHUNK_MASKS = 64

_paste = jax.jit(paste_masks, static_argnums=(2, 3))


def encode_masks(
    boxes: Float[np.ndarray, "n 4"],
    masks: Float[np.ndarray, "n M M"],
    size: tuple[int, int],
    convention: PasteConvention = "detectron2",
) -> list[RLE]:
    """The RLE of each mask, as text, pasted into its box in an image of `size` (height, width).

    `boxes` (x1, y1, x2, y2) are in that image's pixels, `masks` probabilities inside them; `convention` is that of
    `ops.paste_masks`.
    """
    windows = _windows(boxes, size, masks.shape[-1], convention)
    encoded: list[RLE] = [{} for _ in windows]
    for index, columns in _pasted_columns(boxes, masks, windows, convention):
        x1, y1, x2, y2 = (int(side) for side in windows[index])
        encoded[index] = as_text(encode_window(columns[: x2 - x1, : y2 - y1], x1, y1, size))
    return encoded


def _windows(
    boxes: Float[np.ndarray, "n 4"], size: tuple[int, int], mask_side: int, convention: PasteConvention
) -> Int[np.ndarray, "n 4"]:
    """Whole pixels (x1, y1, x2, y2) inside the image, with one to spare around all that pasting can set."""
    margin = (boxes[:, 2:] - boxes[:, :2]) / mask_side if convention == "torchvision" else 0
    limit = np.array([size[1], size[0]])
    low = np.clip(np.floor(boxes[:, :2] - margin).astype(int) - 1, 0, limit)
    high = np.clip(np.ceil(boxes[:, 2:] + margin).astype(int) + 1, low, limit)
    return np.concatenate([low, high], axis=1)


def _pasted_columns(
    boxes: Float[np.ndarray, "n 4"],
    masks: Float[np.ndarray, "n M M"],
    windows: Int[np.ndarray, "n 4"],
    convention: PasteConvention,
) -> Iterator[tuple[int, Bool[np.ndarray, "canvas_w canvas_h"]]]:
    """Each detection's number and its window, transposed (an RLE runs down the columns), at the corner of a canvas."""
    shifted = boxes - np.tile(windows[:, :2], 2).astype(np.float32)
    transposed_boxes, transposed_masks = shifted[:, [1, 0, 3, 2]], masks.swapaxes(1, 2)
    sides = windows[:, 2:] - windows[:, :2]
    canvases = np.maximum(_SMALLEST_CANVAS, 2 ** np.ceil(np.log2(np.maximum(sides, 1))).astype(int))
    for width, height in np.unique(canvases, axis=0).tolist():
        members = np.flatnonzero((canvases == (width, height)).all(axis=1))
        # One chunk size a canvas, filled up with zeros: one program a canvas.
        chunk = int(np.clip(_CHUNK_PIXELS // (width * height), 1, _CHUNK_MASKS))
        for start in range(0, len(members), chunk):
            rows = members[start : start + chunk]
            fill = ((0, chunk - len(rows)), (0, 0))
            part = np.pad(transposed_masks[rows], (*fill, (0, 0))), np.pad(transposed_boxes[rows], fill)
            bitmaps = np.asarray(_paste(*part, (width, height), convention))
            yield from zip(rows.tolist(), bitmaps, strict=False)
