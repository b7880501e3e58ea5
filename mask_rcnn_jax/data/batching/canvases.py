"""The canvases that images are padded to: which are worth their programs, and which one an image takes.

`n` images, `S` short sides of which one is drawn for an image, `u` different sizes, `c` canvases to choose from. Sizes
and canvases are (height, width); those of portrait images are transposed, and chosen among as landscape ones.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mask_rcnn_jax.data.augment.steps import is_portrait
from mask_rcnn_jax.data.augment.transforms import resized_size
from mask_rcnn_jax.data.config import CANVAS_DIVISOR, Canvas, DataConfig
from mask_rcnn_jax.data.records import Record
from mask_rcnn_jax.errors import UserError

_SIDES_TRIED = 48  # of heights and of widths
_STARTS = 16  # of the search
_LEAST_BATCHES = 2  # of an epoch: in fewer, the same images would meet again and again


def landscape_canvases(config: DataConfig) -> list[Canvas]:
    """List the canvases of training, smallest area first; any of its images fits on the last."""
    if config.large_scale_jitter is not None:
        return [config.canvas]
    smaller = {canvas for canvas in config.smaller_canvases if _holds(config.canvas, canvas)} - {config.canvas}
    return [*sorted(smaller, key=_area), config.canvas]


def numbered_canvases(config: DataConfig) -> list[Canvas]:
    """List what `canvas_numbers` counts: the landscape canvases, and their transposes."""
    canvases = landscape_canvases(config)
    return [*canvases, *((width, height) for height, width in canvases)]


def canvas_numbers(records: Sequence[Record], config: DataConfig) -> Int[np.ndarray, "n S"]:
    """Number the canvas of each record at each short side that may be drawn for it.

    There is one column where nothing depends on the draw. Raises `UserError` naming the first image that would not fit
    on the largest canvas after resizing and cropping.
    """
    canvases = landscape_canvases(config)
    found: dict[tuple[int, int], list[int]] = {}
    for record in records:
        size = (record.height, record.width)
        if size not in found:
            found[size] = _numbers_of(record, canvases, config)
    numbers = np.array([found[record.height, record.width] for record in records], np.int16)
    numbers = numbers.reshape(-1, len(config.short_side))
    return numbers if len(canvases) > 1 else numbers[:, :1]


def without_rare(numbers: Int[np.ndarray, "n S"], config: DataConfig, batch_size: int) -> Int[np.ndarray, "n S"]:
    """Move the images of canvases that too few take in an epoch to larger ones.

    A batch holds images of one canvas: those of a rare one would wait for long, and then fill a batch with one another.
    """
    numbers = numbers.copy()
    for number, larger in enumerate(_next_larger(config)):
        images = (numbers == number).mean(axis=1).sum()
        if larger is not None and images < _LEAST_BATCHES * batch_size:
            numbers[numbers == number] = larger
    return numbers


def training_sizes(records: Sequence[Record], config: DataConfig) -> Int[np.ndarray, "m 2"]:
    """Collect the sizes of all records at all short sides after resizing and cropping, as if all were landscape.

    They are squares where quarter-turns need square canvases.
    """
    sizes = np.array([_sizes_of(record, config) for record in records], np.int64).reshape(-1, 2)
    turns = config.rotate90 > 0 and config.canvas[0] == config.canvas[1]
    return sizes.max(axis=1, keepdims=True).repeat(2, axis=1) if turns else sizes


def choose_canvases(sizes: Int[np.ndarray, "m 2"], count: int, divisor: int = CANVAS_DIVISOR) -> tuple[Canvas, ...]:
    """Choose at most `count` canvases on which images of these sizes take the fewest pixels, smallest area first.

    Sides are multiples of `divisor`. The last canvas holds every image. Each of the best alone is joined by others one
    by one, and these are exchanged until no exchange of one helps: a search of all finds none better in the tests.
    """
    needed, images = np.unique(-(-sizes // divisor) * divisor, axis=0, return_counts=True)
    tried, whole = _candidates(needed), needed.max(axis=0)
    pixels = _pixels(needed, np.concatenate([tried, whole[None]])) * images[:, None]
    alone = np.minimum(pixels, pixels[:, -1:]).sum(axis=0)
    firsts = np.argsort(alone, kind="stable")[:_STARTS].tolist()
    found = [_exchanged(pixels, [first, *[len(tried)] * (count - 2)][: count - 1]) for first in firsts]
    best = min(found, key=lambda chosen: pixels[:, [*chosen, -1]].min(axis=1).sum())
    smaller = {(int(height), int(width)) for height, width in tried[[index for index in best if index < len(tried)]]}
    largest = (int(whole[0]), int(whole[1]))
    return (*sorted(smaller - {largest}, key=_area), largest)


def padding(sizes: Int[np.ndarray, "m 2"], canvases: Sequence[Canvas]) -> float:
    """Count the pixels that are computed for each pixel of the images, each on the smallest canvas that holds it."""
    taken = _pixels(sizes, np.array(canvases)).min(axis=1)
    return float(taken.sum() / sizes.prod(axis=1).sum())


def _next_larger(config: DataConfig) -> list[int | None]:
    """Return for each canvas the number of the next that holds whatever it holds, None for the largest."""
    canvases = numbered_canvases(config)
    half = len(canvases) // 2
    return [
        next((j for j in range(i + 1, (i // half + 1) * half) if _holds(canvases[j], canvases[i])), None)
        for i in range(len(canvases))
    ]


def _sizes_of(record: Record, config: DataConfig) -> list[tuple[int, int]]:
    """The sizes of a record at each short side, as if it were landscape."""
    limit = config.crop or (config.max_side, config.max_side)
    size = (record.height, record.width)
    resized = [resized_size(*size, short, config.max_side, config.resize) for short in config.short_side]
    turned = [(width, height) for height, width in resized] if is_portrait(record) else resized
    return [(min(height, limit[0]), min(width, limit[1])) for height, width in turned]


def _numbers_of(record: Record, canvases: Sequence[Canvas], config: DataConfig) -> list[int]:
    sizes = _sizes_of(record, config)
    if config.large_scale_jitter is not None:
        sizes = [config.canvas] * len(sizes)  # it fills the canvas, whatever the image
    fitting = [next((i for i, canvas in enumerate(canvases) if _holds(canvas, size)), None) for size in sizes]
    numbers = [number for number in fitting if number is not None]
    if len(numbers) < len(fitting):
        raise UserError(
            f"Image {record.path} ({record.width} x {record.height}) does not fit on data.canvas {config.canvas} "
            f"with short side {max(config.short_side)} and data.max_side {config.max_side}; enlarge the canvas "
            "(multiples of 32) or lower the sides."
        )
    turned = [is_portrait(record) and canvases[number][0] != canvases[number][1] for number in numbers]
    return [number + turn * len(canvases) for number, turn in zip(numbers, turned, strict=True)]


def _holds(canvas: Canvas, size: tuple[int, int]) -> bool:
    return size[0] <= canvas[0] and size[1] <= canvas[1]


def _area(canvas: Sequence[int]) -> tuple[int, ...]:
    return (canvas[0] * canvas[1], *canvas)


def _candidates(needed: Int[np.ndarray, "u 2"]) -> Int[np.ndarray, "c 2"]:
    """Landscape canvases of sides that images need; of very many, evenly spread ones and the longest."""
    heights, widths = (np.unique(sides) for sides in needed.T)
    heights, widths = (sides[::-1][:: -(-len(sides) // _SIDES_TRIED)] for sides in (heights, widths))
    pairs = np.stack(np.meshgrid(heights, widths, indexing="ij"), axis=-1).reshape(-1, 2)
    return pairs[pairs[:, 0] <= pairs[:, 1]]


def _pixels(sizes: Int[np.ndarray, "u 2"], canvases: Int[np.ndarray, "c 2"]) -> Float[np.ndarray, "u c"]:
    """Pixels of each canvas for an image of each size, infinitely many where it does not fit."""
    fits = (sizes[:, None] <= canvases).all(axis=2)
    return np.where(fits, canvases.prod(axis=1).astype(np.float64), np.inf)


def _exchanged(pixels: Float[np.ndarray, "u c"], chosen: list[int]) -> list[int]:
    """Exchange one canvas after the other for a better one beside the rest and the last, until none is better."""
    unchanged, place = 0, len(chosen) - 1
    while unchanged < len(chosen):
        rest = pixels[:, [*chosen[:place], *chosen[place + 1 :], -1]].min(axis=1)
        costs = np.minimum(rest[:, None], pixels).sum(axis=0)
        better = int(costs.argmin())
        if costs[better] < costs[chosen[place]]:
            chosen, unchanged = [*chosen[:place], better, *chosen[place + 1 :]], 0
        else:
            unchanged += 1
        place = (place - 1) % len(chosen)
    return chosen
