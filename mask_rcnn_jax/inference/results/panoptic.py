"""Kinds of stuff at the size of the original image, and the one map of segments that they make with the instances.

Shape letters: `h w` sides of the head's grid over the padded image, `H W` of the original image, `S` kinds, `n`
instances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, PanopticConfig, SemanticHeadConfig
from mask_rcnn_jax.rle import RLE, decode_bitmap

if TYPE_CHECKING:
    from mask_rcnn_jax.inference.results.detections import Detections

_DEFAULTS = PanopticConfig()
_TILE = 128  # pixels a side that are resized at once: logits of all kinds at full size would be hundreds of megabytes


@dataclass(frozen=True)
class Segment:
    """A region of a map of segments: an instance, or all that an image shows of a kind of stuff."""

    number: int  # of its pixels in the map, from 1
    is_thing: bool
    kind: int  # the class of a thing, 0..K-1; the kind of stuff, 1..S-1
    area: int  # pixels
    score: float | None = None  # of a thing
    instance: int | None = None  # of a thing: its row in the detections


@dataclass(frozen=True)
class Stuff:
    """The kinds of stuff that a model tells apart, and how they make one map with its instances."""

    names: tuple[str, ...] = ()  # of the kinds 1, 2, ...
    ids: tuple[int, ...] = ()  # of their categories
    combine: PanopticConfig = PanopticConfig()


def stuff_of(config: MaskRCNNConfig, names: Sequence[str], ids: Sequence[int], category_ids: Sequence[int]) -> Stuff:
    """The kinds of stuff of a model; without `names` they are numbered, after the categories of things."""
    for head in config.heads:
        if isinstance(head, SemanticHeadConfig):
            numbers = range(1, head.num_kinds)
            if len(names) != len(numbers):
                names, ids = [f"stuff {n}" for n in numbers], [max(category_ids, default=0) + n for n in numbers]
            return Stuff(tuple(names), tuple(ids), head.combine)
    return Stuff()


def stuff_kinds(
    logits: Float[np.ndarray, "h w S"],
    padded_size: tuple[int, int],
    size: tuple[int, int],
    original_size: tuple[int, int],
) -> UInt8[np.ndarray, "H W"]:
    """The kind with the highest logit at each pixel of the original image; sizes are (height, width).

    As Detectron2: logits are interpolated to the padded image, cut to the image of `size`, and interpolated again.
    Both are linear and separate into axes, so they are one product with a matrix for rows and one for columns, for a
    tile of pixels and the cells around it at a time. What a device resized itself could not be brought to the original
    image this way, and its logits at full size are hundreds of megabytes.
    """
    rows, columns = (
        _resizing(*sides) for sides in zip(logits.shape[:2], padded_size, size, original_size, strict=True)
    )
    kinds = np.zeros(original_size, np.uint8)
    for tile_rows, cells_of_rows, weights in _tiles(rows):
        strip = np.tensordot(weights, logits[cells_of_rows].astype(np.float32), 1)
        for tile_columns, cells, others in _tiles(columns):
            kinds[tile_rows, tile_columns] = np.matmul(others, strip[:, cells]).argmax(axis=-1)
    return kinds


def panoptic_segments(
    kinds: UInt8[np.ndarray, "H W"],
    scores: Float[np.ndarray, " n"],
    classes: Int[np.ndarray, " n"],
    rles: tuple[RLE, ...],
    config: PanopticConfig,
) -> tuple[Int[np.ndarray, "H W"], list[Segment]]:
    """The number of the segment at each pixel, 0 where there is none, and the segments.

    Kirillov et al. 2019, section 4.2, as Detectron2's `combine_semantic_and_instance_outputs`: instances are laid down
    by descending score, where no better one lies, and left out where too much of them is hidden; the rest is stuff,
    but for kinds that cover little of it. Areas are those that the map shows.
    """
    segments: list[Segment] = []
    numbers = np.zeros(kinds.shape, np.int32)
    for row in np.argsort(-scores, kind="stable").tolist():
        if scores[row] < config.min_score:
            break
        mask: Bool[np.ndarray, "H W"] = decode_bitmap(rles[row])
        area, free = int(mask.sum()), mask & (numbers == 0)
        visible = int(free.sum())
        if visible == 0 or (area - visible) / area > config.max_overlap:
            continue
        numbers[free] = len(segments) + 1
        of_thing = int(classes[row]), visible, float(scores[row]), row
        segments.append(Segment(len(segments) + 1, True, *of_thing))
    for kind in np.unique(kinds).tolist():
        mask = (kinds == kind) & (numbers == 0)
        area = int(mask.sum())
        if kind == 0 or area < max(config.min_stuff_area, 1):
            continue
        numbers[mask] = len(segments) + 1
        segments.append(Segment(len(segments) + 1, False, kind, area))
    return numbers, segments


def panoptic_map(
    found: "Detections", combine: PanopticConfig = _DEFAULTS
) -> tuple[Int[np.ndarray, "H W"], list[Segment]]:
    """`panoptic_segments` of the detections of an image; without a semantic head, of the instances alone.

    Raises `UserError` for detections without masks.
    """
    if found.rles is None:
        raise UserError("a map of segments is made of masks, and the model has none")
    stuff = np.zeros((found.height, found.width), np.uint8) if found.stuff is None else found.stuff
    return panoptic_segments(stuff, found.scores, found.classes, found.rles, combine)


def to_coco_panoptic(
    numbers: Int[np.ndarray, "H W"], segments: Sequence[Segment], category_ids: Sequence[int], stuff_ids: Sequence[int]
) -> tuple[UInt8[np.ndarray, "H W 3"], list[dict[str, Any]]]:
    """A map of segments as COCO's panoptic format has it: colours, R + 256 G + 65536 B for a number, and the entries of
    `segments_info`, those of things with their score.

    `category_ids` are those of the classes 0..K-1, `stuff_ids` those of the kinds 1, 2, ...
    """
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
    entries: list[dict[str, Any]] = []
    for segment in segments:
        mask = numbers == segment.number
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        entry: dict[str, Any] = {
            "id": segment.number,
            "category_id": category_ids[segment.kind] if segment.is_thing else stuff_ids[segment.kind - 1],
            "area": segment.area,
            "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
            "iscrowd": 0,
        }
        entries.append(entry if segment.score is None else entry | {"score": segment.score})
    return colours, entries


def _resizing(cells: int, padded: int, side: int, original: int) -> Float[np.ndarray, "{original} {cells}"]:
    """The weight of every cell of an axis at every pixel of the original image."""
    to_padded = _interpolation(cells, padded, np.float32(cells / padded))[:side]
    return _interpolation(side, original, np.float32(side) / np.float32(original)) @ to_padded


def _interpolation(length: int, new_length: int, scale: np.float32) -> Float[np.ndarray, "{new_length} {length}"]:
    """PyTorch's weights, whose positions are float32."""
    position = np.maximum(scale * (np.arange(new_length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(position.astype(int), length - 1)
    share = position - low.astype(np.float32)
    weights = np.zeros((new_length, length), np.float32)
    weights[np.arange(new_length), low] = 1 - share
    weights[np.arange(new_length), np.minimum(low + 1, length - 1)] += share
    return weights


def _tiles(weights: Float[np.ndarray, "L c"]) -> Iterator[tuple[slice, slice, Float[np.ndarray, "t d"]]]:
    """Some pixels of an axis, the cells that they depend on, and the weights of these."""
    for start in range(0, len(weights), _TILE):
        part = weights[start : start + _TILE]
        used = np.flatnonzero(part.any(axis=0))
        cells = slice(int(used[0]), int(used[-1]) + 1)
        yield slice(start, start + len(part)), cells, part[:, cells]
