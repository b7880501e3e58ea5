"""Augmentation, step by step: each takes a sample, or a record to begin with, and draws from the generator handed in.

Boxes, masks, keypoints, proposals and labels of pixels follow the image through every step. Draws come in a fixed order
and only for what the settings ask for, so that a setting that is off changes nothing for the others.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageEnhance

from mask_rcnn_jax.data.augment import transforms
from mask_rcnn_jax.data.augment.sample import PlacedMask, Sample, Window, mask_of_pixels
from mask_rcnn_jax.data.config import ColorJitterConfig, DataConfig, LargeScaleJitterConfig
from mask_rcnn_jax.data.records import BoxProposals, Record
from mask_rcnn_jax.data.records.masks import visible_box
from mask_rcnn_jax.data.semantic.labels import read_kinds
from mask_rcnn_jax.structures import IGNORED

_PASTED = 0.5  # probability of each instance of the donor


def is_portrait(record: Record) -> bool:
    """Return whether the image goes on the transposed canvas."""
    return record.height > record.width


# --- From a record to a sample ----------------------------------------------------------------------------------------


def color_jitter(picture: Image.Image, config: ColorJitterConfig, rng: np.random.Generator) -> Image.Image:
    """The RGB picture with random brightness (towards black), contrast (towards its mean) and saturation."""
    for enhance, spread in (
        (ImageEnhance.Brightness, config.brightness),
        (ImageEnhance.Contrast, config.contrast),
        (ImageEnhance.Color, config.saturation),
    ):
        picture = enhance(picture).enhance(rng.uniform(max(1 - spread, 0), 1 + spread))
    return picture


def shortest_edge(picture: Image.Image, record: Record, config: DataConfig, rng: np.random.Generator) -> Sample:
    """The picture at one of the short sides, and a random crop of it where there is to be one."""
    short_side = int(rng.choice(config.short_side))
    size = transforms.resized_size(record.height, record.width, short_side, config.max_side, config.resize)
    image, window = transforms.resize_picture(picture, size, config.resize), (0, 0, size[1], size[0])
    if config.crop is not None:
        limit_height, limit_width = config.crop
        limit = (limit_width, limit_height) if is_portrait(record) else config.crop
        window = _crop_window(_resized_boxes(record, size), size, limit, rng)
        image = image[window[1] : window[3], window[0] : window[2]]
    return _sample(record, size, window, image)


def large_scale_jitter(picture: Image.Image, record: Record, config: DataConfig, rng: np.random.Generator) -> Sample:
    """The picture at a random scale, cut out at random where it is larger than the canvas, and grey beside it.

    Detectron2's ResizeScale and FixedSizeCrop: at scale 1 the picture just fits, and one draw sets both offsets.
    """
    jitter = config.large_scale_jitter or LargeScaleJitterConfig()
    canvas = np.array(config.canvas[::-1] if is_portrait(record) else config.canvas)
    original = np.array([record.height, record.width])
    scale = (rng.uniform(jitter.min_scale, jitter.max_scale) * canvas / original).min()
    size = np.maximum(np.round(original * scale).astype(int), 1)
    offset = np.round(np.maximum(size - canvas, 0) * rng.uniform()).astype(int)
    (y1, x1), (y2, x2) = offset.tolist(), np.minimum(offset + canvas, size).tolist()
    height, width = size.tolist()
    seen = transforms.resize_window(picture, (height, width), (x1, y1, x2, y2), config.resize)
    image = np.full((*canvas, 3), jitter.fill, seen.dtype)
    image[: y2 - y1, : x2 - x1] = seen
    return _sample(record, (height, width), (x1, y1, x2, y2), image)


def _sample(record: Record, size: tuple[int, int], window: Window, image: np.ndarray) -> Sample:
    """Return what is left of the record's instances inside `window` of the image at `size`. Crowds are left out.

    Boxes that the window cuts are drawn anew around the visible part of the mask.
    """
    kept = np.flatnonzero(~record.iscrowd)
    scale, boxes = _scale(record, size), _resized_boxes(record, size)
    clipped = transforms.clip_boxes(boxes, window)
    survivors = _has_area(clipped)
    for row in np.flatnonzero(survivors & (clipped != boxes).any(axis=1)):
        visible = visible_box(record.segmentations[int(kept[row])], clipped[row] / scale)
        clipped[row] = 0 if visible is None else transforms.clip_boxes(visible[None] * scale, window)[0]
    survivors = np.flatnonzero(_has_area(clipped))
    kept, boxes = kept[survivors], clipped[survivors]
    keypoints = np.zeros((kept.size, 0, 3), np.float32)
    if record.keypoints is not None:
        resized = record.keypoints[kept] * np.append(scale[:2], np.float32(1))
        keypoints = transforms.crop_keypoints(resized, window)
    segmentations = [record.segmentations[instance] for instance in kept.tolist()]
    masks = tuple(PlacedMask(s, box / scale) for s, box in zip(segmentations, boxes, strict=True))
    boxes = boxes - np.array(window[:2] * 2, np.float32)
    proposals = resized_proposals(record, size, window)
    semantic = resized_kinds(record, size, window, image.shape[:2])
    return Sample(image, boxes, record.classes[kept], masks, keypoints, proposals=proposals, semantic=semantic)


def resized_proposals(record: Record, size: tuple[int, int], window: Window) -> BoxProposals | None:
    """The record's proposals inside `window` of the image at `size` (height, width), from the window's corner.

    What has no area there is left out. None where the record has none.
    """
    if record.proposals is None:
        return None
    boxes = transforms.clip_boxes(_resized(record.proposals.boxes, record, size), window)
    kept = _has_area(boxes)
    corner = np.array(window[:2] * 2, np.float32)
    return BoxProposals(boxes[kept] - corner, record.proposals.scores[kept])


def resized_kinds(
    record: Record, size: tuple[int, int], window: Window, canvas: tuple[int, ...]
) -> UInt8[np.ndarray, "H W"] | None:
    """The kind at each pixel inside `window` of the image at `size`, in the corner of a `canvas` of ignored pixels.

    Pixels are those that Pillow takes as the nearest. None where the record has no labels; `UserError` where they
    cannot be read.
    """
    if record.semantic is None:
        return None
    height, width = size
    resized = np.asarray(Image.fromarray(read_kinds(record)).resize((width, height), Image.Resampling.NEAREST))
    seen = resized[window[1] : window[3], window[0] : window[2]]
    kinds = np.full(canvas, IGNORED, np.uint8)
    kinds[: seen.shape[0], : seen.shape[1]] = seen
    return kinds


def _scale(record: Record, size: tuple[int, int]) -> np.ndarray:
    return np.array([size[1] / record.width, size[0] / record.height] * 2, np.float32)


def _resized_boxes(record: Record, size: tuple[int, int]) -> np.ndarray:
    return _resized(record.boxes[~record.iscrowd], record, size)


def _resized(boxes: np.ndarray, record: Record, size: tuple[int, int]) -> np.ndarray:
    return transforms.clip_boxes(boxes * _scale(record, size), (0, 0, size[1], size[0]))


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return np.logical_and(boxes[:, 2] > boxes[:, 0], boxes[:, 3] > boxes[:, 1])


def _crop_window(boxes: np.ndarray, size: tuple[int, int], limit: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window (x1, y1, x2, y2) of at most `limit` that holds the centre of an instance drawn at random."""
    height, width = size
    crop_height, crop_width = min(limit[0], height), min(limit[1], width)
    centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
    if len(boxes):
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))].tolist()
        centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    x = _offset(centre_x, crop_width, width, rng)
    y = _offset(centre_y, crop_height, height, rng)
    return x, y, x + crop_width, y + crop_height


def _offset(centre: float, length: int, total: int, rng: np.random.Generator) -> int:
    low = max(int(np.ceil(centre)) - length, 0)
    high = min(int(centre), total - length)
    return int(rng.integers(min(low, high), high + 1))


# --- From a sample to a sample ----------------------------------------------------------------------------------------


def limit_instances(sample: Sample, rng: np.random.Generator, config: DataConfig) -> Sample:
    """A random subset of the instances, where there are more than slots; `dropped` counts the others."""
    count = len(sample.boxes)
    if count <= config.max_instances:
        return sample
    chosen = np.sort(rng.choice(count, config.max_instances, replace=False))
    return replace(sample.select(chosen), dropped=sample.dropped + count - config.max_instances)


def flip_and_turn(
    sample: Sample, rng: np.random.Generator, config: DataConfig, mirrored: Int[np.ndarray, " J"]
) -> Sample:
    """Mirrors and quarter-turns; in a mirror each keypoint is taken for the one at its place in `mirrored`."""
    image, masks, keypoints, proposals = sample.image, sample.masks, sample.keypoints, sample.proposals
    kinds = sample.semantic
    boxes = sample.boxes if proposals is None else np.concatenate([sample.boxes, proposals.boxes])
    height, width = image.shape[:2]
    flip, vertical_flip, turn = rng.random(3) < (config.flip, config.vertical_flip, config.rotate90)
    turns = int(rng.integers(1, 4)) if turn else 0
    if config.canvas[0] != config.canvas[1]:
        turns = 2 * (turns > 0)  # a quarter-turn would need the other orientation's canvas
    if flip:
        image, masks = transforms.mirror(image), [mask.flipped() for mask in masks]
        boxes = transforms.flip_boxes(boxes, width)
        keypoints = transforms.flip_keypoints(keypoints, width, mirrored)
        kinds = kinds if kinds is None else kinds[:, ::-1]
    if vertical_flip:
        image, masks = image[::-1], [mask.flipped().turned(2) for mask in masks]
        boxes = transforms.vertical_flip_boxes(boxes, height)
        keypoints = transforms.vertical_flip_keypoints(keypoints, height, mirrored)
        kinds = kinds if kinds is None else kinds[::-1]
    if turns:
        image, masks = np.rot90(image, turns), [mask.turned(turns) for mask in masks]
        boxes = transforms.rotate_boxes(boxes, height, width, turns)
        keypoints = transforms.rotate_keypoints(keypoints, height, width, turns)
        kinds = kinds if kinds is None else np.rot90(kinds, turns)
    boxes, proposed = boxes[: len(sample.boxes)], boxes[len(sample.boxes) :]
    if proposals is not None:
        proposals = replace(proposals, boxes=proposed)
    sample = replace(sample, image=image, boxes=boxes, masks=tuple(masks), keypoints=keypoints)
    return replace(sample, proposals=proposals, semantic=kinds)


def copy_paste(
    sample: Sample, rng: np.random.Generator, config: DataConfig, draw_donor: Callable[[np.random.Generator], Sample]
) -> Sample:
    """Simple copy-paste (arXiv 2012.07177): a random half of a donor's instances, pasted where they are in the donor.

    What they hide is taken from the sample's masks and boxes; its keypoints there count as hidden, and instances of
    which nothing is left are gone.
    """
    if rng.random() >= config.copy_paste:
        return sample
    donor = draw_donor(rng)
    donor = donor.select(np.flatnonzero(rng.random(len(donor.boxes)) < _PASTED))
    height, width = np.minimum(sample.image.shape[:2], donor.image.shape[:2]).tolist()
    outside = np.ones(donor.image.shape[:2], bool)
    outside[:height, :width] = False
    donor = _without(donor, outside)
    donor = replace(donor, keypoints=transforms.crop_keypoints(donor.keypoints, (0, 0, width, height)))

    pasted = np.zeros(sample.image.shape[:2], bool)
    pasted[:height, :width] = covered = _covered(donor)[:height, :width]
    image = sample.image.copy()
    image[pasted] = donor.image[:height, :width][covered]
    below = _without(sample, pasted)
    return replace(
        below,
        image=image,
        boxes=np.concatenate([below.boxes, donor.boxes]),
        classes=np.concatenate([below.classes, donor.classes]),
        masks=below.masks + donor.masks,
        keypoints=np.concatenate([below.keypoints, donor.keypoints]),
        dropped=below.dropped + donor.dropped,
    )


def _without(sample: Sample, hidden: Bool[np.ndarray, "H W"]) -> Sample:
    """The sample's instances where these pixels do not show them; its image is left alone."""
    boxes, masks, keypoints = sample.boxes.copy(), list(sample.masks), sample.keypoints.copy()
    survivors = []
    for row, box in enumerate(boxes):
        x1, y1, x2, y2 = window = _whole_pixels(box, hidden.shape)
        if hidden[y1:y2, x1:x2].any():
            pixels = _pixels(masks[row], box, window)
            remaining = pixels & ~hidden[y1:y2, x1:x2]
            if not remaining.any():
                continue
            if (remaining != pixels).any():
                masks[row], box = mask_of_pixels(remaining)
                boxes[row] = box + np.array([x1, y1] * 2, np.float32)
        survivors.append(row)
    at = np.minimum(keypoints[..., :2].astype(int), np.array(hidden.shape[::-1]) - 1)
    covered = (keypoints[..., 2] > 0) & hidden[at[..., 1], at[..., 0]]
    keypoints[..., 2] = np.where(covered, 1, keypoints[..., 2])
    changed = replace(sample, boxes=boxes, masks=tuple(masks), keypoints=keypoints)
    return changed.select(np.array(survivors, int))


def _covered(sample: Sample) -> Bool[np.ndarray, "H W"]:
    """The pixels that any instance covers."""
    covered = np.zeros(sample.image.shape[:2], bool)
    for mask, box in zip(sample.masks, sample.boxes, strict=True):
        x1, y1, x2, y2 = window = _whole_pixels(box, covered.shape)
        covered[y1:y2, x1:x2] |= _pixels(mask, box, window)
    return covered


def _pixels(mask: PlacedMask, box: np.ndarray, window: Window) -> np.ndarray:
    """The instance's pixels in `window`, which is around its box; all where it is too thin to cover any by half."""
    pixels = mask.pixels(box, window)
    return pixels if pixels.any() else np.ones_like(pixels)


def _whole_pixels(box: np.ndarray, size: tuple[int, ...]) -> Window:
    """The smallest window of whole pixels around a box in an image of `size` (height, width)."""
    x1, y1 = np.floor(box[:2]).astype(int).tolist()
    x2, y2 = np.ceil(box[2:]).astype(int).tolist()
    return max(x1, 0), max(y1, 0), min(x2, size[1]), min(y2, size[0])
