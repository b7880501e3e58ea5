"""Batches of fixed shape, prefetched in the background through Grain.

`B` images on a canvas of `H W` pixels (one orientation a batch), `G` ground-truth slots, `C` side of a mask grid,
`J` keypoints of an instance. Padding rows and slots hold zeros and are marked by `gt_valid` or `valid`.

A training batch depends on (seed, step) alone: not on the number of workers, nor on the step a run was resumed at.
"""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int

from mask_rcnn_jax.data.coco import CocoDataset, Record
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.examples import is_portrait, read_resized, training_example
from mask_rcnn_jax.data.transforms import resized_size
from mask_rcnn_jax.errors import UserError

Arrays = dict[str, np.ndarray]

_THREADS = min(8, os.cpu_count() or 1)
_BATCHES_AHEAD = 2  # of each worker


class BatchIterator(Iterator[Arrays]):
    """Batches in order, loaded ahead. `close()`, which the end of the data calls too, stops the loading."""

    def __init__(self, iterator: grain.DatasetIterator[Arrays]):
        self._iterator = iterator
        self._iterator.start_prefetch()

    def __next__(self) -> Arrays:
        batch = next(self._iterator, None)
        if batch is None:
            self.close()
            raise StopIteration
        # Copied out of the memory shared with a worker, which can then be released.
        return {key: np.array(value) for key, value in batch.items()}

    def close(self) -> None:
        """Stops workers and threads; may be called twice."""
        self._iterator.close()
        # Grain's cycles of references keep the last batches in shared memory, which Python would report at exit.
        gc.collect()


def plan_batches(
    orientation: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"], batch_size: int, num_steps: int, seed: int
) -> Int[np.ndarray, "num_steps batch_size"]:
    """Which of `n` records each step trains on; a batch holds one value of `orientation`.

    Epochs of fresh permutations follow one another; each orientation collects its records in that order and yields a
    batch whenever it has enough (Detectron2's aspect-ratio grouping, without its dependence on the number of workers).
    """
    orientation = np.asarray(orientation)
    groups = np.unique(orientation)
    # Every group but the last to finish may hold an incomplete batch.
    length = (num_steps + len(groups)) * batch_size
    epochs = -(-length // max(len(orientation), 1))
    stream = np.concatenate([np.random.default_rng([seed, e]).permutation(len(orientation)) for e in range(epochs)])
    batches = []
    for group in groups:
        positions = np.flatnonzero(orientation[stream] == group)
        batches.append(positions[: len(positions) // batch_size * batch_size].reshape(-1, batch_size))
    positions = np.concatenate(batches)
    in_order = positions[np.argsort(positions[:, -1])]
    return stream[in_order[:num_steps]].astype(np.int32)


def trainable_records(dataset: CocoDataset, config: DataConfig) -> tuple[Record, ...]:
    """The records that training visits: those with an instance that is no crowd, or all with `keep_empty`, and with
    `min_keypoints` annotated keypoints. Raises `UserError` where that leaves none.
    """
    if config.min_keypoints > 0 and not dataset.keypoint_names:
        raise UserError(
            f"{dataset.annotation_file} names no keypoints but data.min_keypoints is {config.min_keypoints}; "
            "name a file with keypoints in data.source.annotation_file, or set data.min_keypoints to 0."
        )
    records = tuple(r for r in dataset.records if config.keep_empty or not r.iscrowd.all())
    records = tuple(r for r in records if annotated_keypoints(r) >= config.min_keypoints)
    if not records:
        raise UserError(f"{dataset.annotation_file} has no usable annotations to train on; check its problems.")
    return records


def describe_left_out(dataset: CocoDataset, config: DataConfig) -> list[str]:
    """A line for the images that training leaves out for want of keypoints, if there are any."""
    count = sum(annotated_keypoints(record) < config.min_keypoints for record in dataset.records)
    what = f"images with fewer annotated keypoints than data.min_keypoints {config.min_keypoints}, not trained on"
    return [f"{dataset.annotation_file}: {count} {what}"] if count else []


def annotated_keypoints(record: Record) -> int:
    """How many keypoints are annotated in the image, hidden ones as well, but for those of crowds."""
    if record.keypoints is None:
        return 0
    return int((record.keypoints[~record.iscrowd, :, 2] > 0).sum())


def train_batches(
    dataset: CocoDataset, config: DataConfig, batch_size: int, seed: int, start_step: int, num_steps: int
) -> BatchIterator:
    """Batches of the steps `start_step`, ..., `num_steps - 1`, in order; `close()` ends the loading.

    Keys: images [B, H, W, 3] (RGB; uint8, or float32 with torchvision's resizing), image_sizes [B, 2] (height, width),
    gt_boxes [B, G, 4], gt_classes [B, G], gt_masks [B, G, C, C], gt_mask_regions [B, G, 4], gt_valid [B, G],
    example_index [B] (step * B + row), image_ids [B], dropped_instances [B], and gt_keypoints [B, G, J, 3] where the
    dataset has keypoints. Raises `UserError` before the first batch when an image cannot fit on the canvas, and with it
    when an image file turns out unreadable.
    """
    records = trainable_records(dataset, config)
    check_fits(records, config)
    square = config.canvas[0] == config.canvas[1]
    orientation = np.array([is_portrait(record) and not square for record in records])
    plan = plan_batches(orientation, batch_size, num_steps, seed)
    load = partial(_training_batch, records, dataset.keypoint_names, config, plan, seed)
    pixels, cells = config.canvas[0] * config.canvas[1], config.max_instances * config.mask_crop**2
    batch_bytes = batch_size * (3 * pixels * np.dtype(_pixel_type(config)).itemsize + cells)
    return _prefetched(load, start_step, num_steps, config.num_workers, batch_bytes)


def eval_batches(dataset: CocoDataset, config: DataConfig, batch_size: int) -> BatchIterator:
    """Every image of the dataset once, without augmentation, landscape images first; the last batch of an orientation
    is filled up with zero images, `valid` False.

    Keys: images [B, H, W, 3], image_sizes [B, 2], original_sizes [B, 2] (height, width), image_ids [B], valid [B].
    """
    canvas = config.canvas_eval or config.canvas
    config = replace(config, canvas=canvas, crop=None, short_side=(config.short_side_eval,))
    check_fits(dataset.records, config)
    square = config.canvas[0] == config.canvas[1]
    orientation = np.array([is_portrait(record) and not square for record in dataset.records], bool)
    plan = []
    for group in (False, True):
        members = np.flatnonzero(orientation == group)
        plan += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    load = partial(_eval_batch, dataset.records, config, plan, batch_size)
    # Pillow decodes and resizes outside the interpreter lock: threads suffice.
    return _prefetched(load, 0, len(plan), num_workers=0)


def check_fits(records: Sequence[Record], config: DataConfig) -> None:
    """Raises `UserError` naming the first image that would not fit on the canvas after resizing and cropping."""
    if config.canvas[0] > config.canvas[1]:
        raise UserError(f"data.canvas {config.canvas} is portrait; give (height, width) of the landscape canvas.")
    fits: dict[tuple[int, int], bool] = {}
    for record in records:
        size = (record.height, record.width)
        if size not in fits:
            limit, canvas = config.crop or (config.max_side, config.max_side), config.canvas
            if is_portrait(record):
                limit, canvas = limit[::-1], canvas[::-1]
            sides = [resized_size(*size, short, config.max_side, config.resize) for short in config.short_side]
            fits[size] = all(min(h, limit[0]) <= canvas[0] and min(w, limit[1]) <= canvas[1] for h, w in sides)
        if not fits[size]:
            raise UserError(
                f"Image {record.path} ({record.width} x {record.height}) does not fit on data.canvas {config.canvas} "
                f"with short side {max(config.short_side)} and data.max_side {config.max_side}; enlarge the canvas "
                "(multiples of 32) or lower the sides."
            )


def _training_batch(
    records: Sequence[Record], keypoint_names: Sequence[str], config: DataConfig, plan: np.ndarray, seed: int, step: int
) -> Arrays:
    chosen = [records[index] for index in plan[step]]
    size, slots, crop = len(chosen), config.max_instances, config.mask_crop
    arrays = _blank_images(chosen[0], config, size)
    arrays |= {
        "gt_boxes": np.zeros((size, slots, 4), np.float32),
        "gt_classes": np.zeros((size, slots), np.int32),
        "gt_masks": np.zeros((size, slots, crop, crop), np.uint8),
        "gt_mask_regions": np.zeros((size, slots, 4), np.float32),
        "gt_valid": np.zeros((size, slots), bool),
        "example_index": np.arange(step * size, (step + 1) * size, dtype=np.int32),
        "dropped_instances": np.zeros(size, np.int32),
    }
    if keypoint_names:
        arrays["gt_keypoints"] = np.zeros((size, slots, len(keypoint_names), 3), np.float32)
    for row, record in enumerate(chosen):
        example = training_example(record, config, np.random.default_rng([seed, step, row]), keypoint_names)
        _place_image(arrays, row, record, example.image)
        count = len(example.boxes)
        arrays["gt_boxes"][row, :count] = example.boxes
        arrays["gt_classes"][row, :count] = example.classes
        arrays["gt_masks"][row, :count] = example.masks
        arrays["gt_mask_regions"][row, :count] = example.boxes
        arrays["gt_valid"][row, :count] = True
        if keypoint_names:
            arrays["gt_keypoints"][row, :count] = example.keypoints
        arrays["dropped_instances"][row] = example.dropped
    return arrays


def _eval_batch(
    records: Sequence[Record], config: DataConfig, plan: Sequence[np.ndarray], batch_size: int, step: int
) -> Arrays:
    chosen = [records[index] for index in plan[step]]
    arrays = _blank_images(chosen[0], config, batch_size)
    arrays["original_sizes"] = np.zeros((batch_size, 2), np.int32)
    arrays["valid"] = np.arange(batch_size) < len(chosen)
    for row, record in enumerate(chosen):
        _place_image(arrays, row, record, read_resized(record, config.short_side_eval, config))
        arrays["original_sizes"][row] = record.height, record.width
    return arrays


def _blank_images(record: Record, config: DataConfig, batch_size: int) -> Arrays:
    canvas = config.canvas[::-1] if is_portrait(record) else config.canvas
    return {
        "images": np.zeros((batch_size, *canvas, 3), _pixel_type(config)),
        "image_sizes": np.zeros((batch_size, 2), np.int32),
        "image_ids": np.zeros(batch_size, np.int64),
    }


def _pixel_type(config: DataConfig) -> type[np.uint8] | type[np.float32]:
    return np.uint8 if config.resize == "detectron2" else np.float32


def _place_image(arrays: Arrays, row: int, record: Record, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    arrays["images"][row, :height, :width] = image
    arrays["image_sizes"][row] = height, width
    arrays["image_ids"][row] = record.image_id


def _prefetched(
    load: Callable[[int], Arrays], start: int, stop: int, num_workers: int, batch_bytes: int = 0
) -> BatchIterator:
    """`load(start)`, ..., `load(stop - 1)`, computed ahead in processes, or in threads when `num_workers` is 0."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its settings from absl's flags, which only absl programs parse
    steps = grain.MapDataset.range(start, max(start, stop)).map(load)
    if num_workers == 0:
        read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
        return BatchIterator(iter(steps.to_iter_dataset(read)))
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    ahead = num_workers * (_BATCHES_AHEAD + 2)  # queued, being written, being read
    sharing = grain.experimental.DatasetOptions(min_shm_size=_least_shared_bytes(ahead * batch_bytes))
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_BATCHES_AHEAD)
    batches = grain.experimental.WithOptionsIterDataset(steps.to_iter_dataset(read), sharing)
    return BatchIterator(iter(batches.mp_prefetch(workers)))


def _least_shared_bytes(needed: int) -> int:
    """From which size on arrays come from the workers through shared memory, and not through a pipe.

    All go through the pipe where the shared memory is too small (64 MB in a Docker container, unless told otherwise):
    writing past its end would kill the worker.
    """
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free < needed:
        return sys.maxsize
    return 1 << 16
