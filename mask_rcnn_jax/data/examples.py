"""One example: a record read, augmented and cut to arrays, without padding.

`n` instances remain after cropping and selection; `C` is the side of a mask grid, `J` the keypoints of an instance.
Random choices are drawn in a fixed order from the generator handed in, so an example depends on that generator's seed
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from mask_rcnn_jax.data import transforms
from mask_rcnn_jax.data.coco import Record
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.keypoints import mirrored
from mask_rcnn_jax.data.masks import coverage, visible_box
from mask_rcnn_jax.data.verify import size_mismatch
from mask_rcnn_jax.errors import UserError


@dataclass(frozen=True)
class Example:
    """An augmented image with its instances, in pixels of that image."""

    image: Num[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    masks: UInt8[np.ndarray, "n C C"]  # coverage (0..255) of the cells of a grid over each box
    keypoints: Float[np.ndarray, "n J 3"]  # (x, y, visibility), zeros where not annotated; J is 0 without keypoints
    dropped: int  # instances left out because there are more than `max_instances`


def is_portrait(record: Record) -> bool:
    """Whether the image goes on the transposed canvas."""
    return record.height > record.width


def read_resized(record: Record, short_side: int, config: DataConfig) -> Num[np.ndarray, "H W 3"]:
    """The record's image with its short side at `short_side`; `UserError` when it is not of the annotated size."""
    image = transforms.read_image(record.path)
    if image.shape[:2] != (record.height, record.width):
        raise UserError(size_mismatch(record, *image.shape[:2]))
    size = transforms.resized_size(record.height, record.width, short_side, config.max_side, config.resize)
    return transforms.resize(image, size, config.resize)


def training_example(
    record: Record, config: DataConfig, rng: np.random.Generator, keypoint_names: Sequence[str] = ()
) -> Example:
    """Reads and augments one record: resize, crop, flips, quarter-turn. Crowds are left out.

    `keypoint_names` are those of the record's dataset: they tell which change places in a mirror.
    """
    image = read_resized(record, int(rng.choice(config.short_side)), config)
    height, width = image.shape[:2]
    window = (0, 0, width, height)
    kept = np.flatnonzero(~record.iscrowd)
    scale = np.array([width / record.width, height / record.height] * 2, np.float32)
    boxes = transforms.clip_boxes(record.boxes[kept] * scale, window)
    if config.crop is not None:
        limit_height, limit_width = config.crop
        limit = (limit_width, limit_height) if is_portrait(record) else (limit_height, limit_width)
        window = _crop_window(boxes, (height, width), limit, rng)
        image = image[window[1] : window[3], window[0] : window[2]]
    boxes, survivors = _visible_boxes(record, kept, boxes, scale, window)
    kept = kept[survivors]
    dropped = max(kept.size - config.max_instances, 0)
    if dropped:
        chosen = np.sort(rng.choice(kept.size, config.max_instances, replace=False))
        kept, boxes = kept[chosen], boxes[chosen]

    masks = np.zeros((kept.size, config.mask_crop, config.mask_crop), np.uint8)
    for row, instance in enumerate(kept):
        masks[row] = coverage(record.segmentations[instance], boxes[row] / scale, config.mask_crop)
    boxes = boxes - np.array(window[:2] * 2, np.float32)
    keypoints = np.zeros((kept.size, 0, 3), np.float32)
    if record.keypoints is not None:
        resized = record.keypoints[kept] * np.append(scale[:2], np.float32(1))
        keypoints = transforms.crop_keypoints(resized, window)
    example = Example(image, boxes, record.classes[kept], masks, keypoints, dropped)
    return _flip_and_turn(example, mirrored(keypoint_names), config, rng)


def _crop_window(
    boxes: np.ndarray, size: tuple[int, int], limit: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
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


def _visible_boxes(
    record: Record, kept: np.ndarray, boxes: np.ndarray, scale: np.ndarray, window: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of what is left inside `window`, and the rows of `boxes` that have anything left.

    Boxes that the window cuts are drawn anew around the visible part of the mask.
    """
    clipped = transforms.clip_boxes(boxes, window)
    survivors = _has_area(clipped)
    for row in np.flatnonzero(survivors & (clipped != boxes).any(axis=1)):
        visible = visible_box(record.segmentations[kept[row]], clipped[row] / scale)
        clipped[row] = 0 if visible is None else transforms.clip_boxes(visible[None] * scale, window)[0]
    survivors = np.flatnonzero(_has_area(clipped))
    return clipped[survivors], survivors


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return np.logical_and(boxes[:, 2] > boxes[:, 0], boxes[:, 3] > boxes[:, 1])


def _flip_and_turn(
    example: Example, mirrored: Int[np.ndarray, " J"], config: DataConfig, rng: np.random.Generator
) -> Example:
    image, boxes, masks, keypoints = example.image, example.boxes, example.masks, example.keypoints
    height, width = image.shape[:2]
    flip, vertical_flip, turn = rng.random(3) < (config.flip, config.vertical_flip, config.rotate90)
    turns = int(rng.integers(1, 4)) if turn else 0
    if config.canvas[0] != config.canvas[1]:
        turns = 2 * (turns > 0)  # a quarter-turn would need the other orientation's canvas
    if flip:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
        boxes = transforms.flip_boxes(boxes, width)
        keypoints = transforms.flip_keypoints(keypoints, width, mirrored)
    if vertical_flip:
        image, masks = image[::-1], masks[:, ::-1]
        boxes = transforms.vertical_flip_boxes(boxes, height)
        keypoints = transforms.vertical_flip_keypoints(keypoints, height, mirrored)
    if turns:
        image, masks = np.rot90(image, turns), np.rot90(masks, turns, axes=(1, 2))
        boxes = transforms.rotate_boxes(boxes, height, width, turns)
        keypoints = transforms.rotate_keypoints(keypoints, height, width, turns)
    return replace(example, image=image, boxes=boxes, masks=masks, keypoints=keypoints)
