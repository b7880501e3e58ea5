"""Batches of fixed shape, prefetched in the background through Grain.

`B` images on a canvas of `H W` pixels (one orientation a batch), `G` ground-truth slots, `C` side of a mask grid,
`J` keypoints of an instance. Padding rows and slots hold zeros and are marked by `gt_valid` or `valid`.

A training batch depends on (seed, step) alone: not on the number of workers or hosts, nor on the step a run was resumed
at. Each host loads its rows of it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int

from mask_rcnn_jax.data.augment import is_portrait
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.examples import Example, read_resized, training_example
from mask_rcnn_jax.data.packed import Selection
from mask_rcnn_jax.data.plan import plan_batches, repeat_factors
from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.shapes import ShapesConfig
from mask_rcnn_jax.data.transforms import resized_size
from mask_rcnn_jax.data.workers import Arrays, BatchIterator, end_with_parent
from mask_rcnn_jax.errors import UserError

_THREADS = min(8, os.cpu_count() or 1)
_BATCHES_AHEAD = 2  # of each worker
_REPLACEMENTS = 20  # images that are tried in the place of one that cannot be read


def trainable_records(dataset: CocoDataset, config: DataConfig) -> Sequence[Record]:
    """The records that training visits: those with an instance that is no crowd, or all with `keep_empty`, and with
    `min_keypoints` annotated keypoints. Raises `UserError` where that leaves none.
    """
    if config.min_keypoints > 0 and not dataset.keypoint_names:
        raise UserError(
            f"{dataset.annotation_file} names no keypoints but data.min_keypoints is {config.min_keypoints}; "
            "name a file with keypoints in data.source.annotation_file, or set data.min_keypoints to 0."
        )

    def visited(record: Record) -> bool:
        return (config.keep_empty or not record.iscrowd.all()) and annotated_keypoints(record) >= config.min_keypoints

    indices = np.array([i for i, record in enumerate(dataset.records) if visited(record)], np.int64)
    if not indices.size:
        problems = "".join(f"\n  {line}" for line in dataset.describe_problems())
        raise UserError(
            f"{dataset.annotation_file} has no usable annotations to train on; check its problems.{problems}"
        )
    return Selection(dataset.records, indices)


def describe_left_out(dataset: CocoDataset, config: DataConfig) -> list[str]:
    """A line for the images that training leaves out for want of keypoints, if there are any."""
    count = sum(annotated_keypoints(record) < config.min_keypoints for record in dataset.records)
    what = f"images with fewer annotated keypoints than data.min_keypoints {config.min_keypoints}, not trained on"
    return [f"{dataset.annotation_file}: {count} {what}"] if count else []


def annotated_keypoints(record: Record) -> int:
    """Count the image's annotated keypoints, hidden ones included, those of crowds excluded."""
    if record.keypoints is None:
        return 0
    return int((record.keypoints[~record.iscrowd, :, 2] > 0).sum())


def train_batches(
    dataset: CocoDataset,
    config: DataConfig,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Batches of the steps `start_step`, ..., `num_steps - 1`, in order; `close()` ends the loading.

    Of the `batch_size` rows of the global batch, process i of P loads rows i * B / P to (i + 1) * B / P; `B` below is
    what it loads.

    Keys: images [B, H, W, 3] (RGB; uint8, or float32 with torchvision's resizing), image_sizes [B, 2] (height, width),
    gt_boxes [B, G, 4], gt_classes [B, G], gt_masks [B, G, C, C], gt_mask_regions [B, G, 4], gt_valid [B, G],
    example_index [B] (step * batch_size + global row), image_ids [B], dropped_instances [B], replaced_images [B] (how
    many images could not be read before this one), and gt_keypoints [B, G, J, 3] where the dataset has keypoints.
    Raises `UserError` before the first batch when an image cannot fit on the canvas, and with it when an image file
    turns out unreadable, unless `broken_images` is "skip": then another one of its orientation, drawn from (seed, step,
    row), takes its place.
    """
    if batch_size % process_count:
        raise UserError(f"batch_size {batch_size} cannot be shared by {process_count} processes; make it a multiple.")
    records = trainable_records(dataset, config)
    check_fits(records, config)
    square = config.canvas[0] == config.canvas[1]
    orientation = np.array([is_portrait(record) and not square for record in records])
    repeats = repeat_factors(records, config.repeat_threshold) if config.repeat_threshold > 0 else None
    sources = np.array([record.source for record in records])
    mixture = (sources, dataset.weights) if dataset.weights else None
    plan = plan_batches(orientation, batch_size, num_steps, seed, repeats, mixture)
    share = batch_size // process_count
    rows = range(process_index * share, (process_index + 1) * share)
    # Processes that load need no source, and may not know its class.
    config = replace(config, source=ShapesConfig())
    load = TrainingBatches(records, orientation, dataset.keypoint_names, config, plan, seed, rows)
    pixels, cells = config.canvas[0] * config.canvas[1], config.max_instances * config.mask_crop**2
    batch_bytes = share * (3 * pixels * np.dtype(_pixel_type(config)).itemsize + cells)
    return _prefetched(load, start_step, num_steps, config.num_workers, batch_bytes)


def eval_batches(
    dataset: CocoDataset,
    config: DataConfig,
    batch_size: int,
    on_broken: Callable[[Record, UserError], None] | None = None,
    multiple: int = 1,
) -> BatchIterator:
    """Every image of the dataset once, without augmentation, landscape images first; the last batch of an orientation
    is filled up with zero images, `valid` False. Where one batch holds them all, it has the fewest rows that do, in a
    `multiple`.

    Keys: images [B, H, W, 3], image_sizes [B, 2], original_sizes [B, 2] (height, width), image_ids [B], valid [B].
    Raises `UserError` with the first batch of an image that turns out unreadable, unless `broken_images` is "skip":
    then `on_broken` is called, from the thread that loads, and the image is a zero one with `valid` False.
    """
    canvas = config.canvas_eval or config.canvas
    config = replace(config, canvas=canvas, crop=None, large_scale_jitter=None, short_side=(config.short_side_eval,))
    check_fits(dataset.records, config)
    square = config.canvas[0] == config.canvas[1]
    orientation = np.array([is_portrait(record) and not square for record in dataset.records], bool)
    plan: list[tuple[np.ndarray, int]] = []
    for group in (False, True):
        members = np.flatnonzero(orientation == group)
        rows = min(batch_size, -(-len(members) // multiple) * multiple)
        plan += [(members[start : start + rows], rows) for start in range(0, len(members), max(rows, 1))]
    load = partial(_eval_batch, dataset.records, config, plan, on_broken)
    # Pillow decodes and resizes outside the interpreter lock: threads suffice.
    return _prefetched(load, 0, len(plan), num_workers=0)


def check_fits(records: Sequence[Record], config: DataConfig) -> None:
    """Raises `UserError` naming the first image that would not fit on the canvas after resizing and cropping."""
    if config.large_scale_jitter is not None:
        return  # it fills the canvas, whatever the image
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


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """Called with a step, loads this process's `rows` of its batch."""

    records: Sequence[Record]
    orientation: Bool[np.ndarray, " n"]
    keypoint_names: Sequence[str]
    config: DataConfig
    plan: Int[np.ndarray, "num_steps batch_size"]
    seed: int
    rows: range

    def __call__(self, step: int) -> Arrays:
        config, size, batch_size = self.config, len(self.rows), self.plan.shape[1]
        slots, crop = config.max_instances, config.mask_crop
        arrays = _blank_images(self.records[int(self.plan[step, 0])], config, size)
        arrays |= {
            "gt_boxes": np.zeros((size, slots, 4), np.float32),
            "gt_classes": np.zeros((size, slots), np.int32),
            "gt_masks": np.zeros((size, slots, crop, crop), np.uint8),
            "gt_mask_regions": np.zeros((size, slots, 4), np.float32),
            "gt_valid": np.zeros((size, slots), bool),
            "example_index": np.array(self.rows, np.int32) + np.int32(step * batch_size),
            "dropped_instances": np.zeros(size, np.int32),
            "replaced_images": np.zeros(size, np.int32),
        }
        if self.keypoint_names:
            arrays["gt_keypoints"] = np.zeros((size, slots, len(self.keypoint_names), 3), np.float32)
        for row, global_row in enumerate(self.rows):
            record, example, arrays["replaced_images"][row] = self._example(step, global_row)
            _place_image(arrays, row, record, example.image)
            count = len(example.boxes)
            arrays["gt_boxes"][row, :count] = example.boxes
            arrays["gt_classes"][row, :count] = example.classes
            arrays["gt_masks"][row, :count] = example.masks
            arrays["gt_mask_regions"][row, :count] = example.boxes
            arrays["gt_valid"][row, :count] = True
            if self.keypoint_names:
                arrays["gt_keypoints"][row, :count] = example.keypoints
            arrays["dropped_instances"][row] = example.dropped
        return arrays

    def _example(self, step: int, row: int) -> tuple[Record, Example, int]:
        """The record and example of a row of the global batch, and how many images could not be read before."""
        index = int(self.plan[step, row])
        rng, attempt = np.random.default_rng([self.seed, step, row]), 0
        while True:
            record = self.records[index]
            try:
                example = training_example(record, self.config, rng, self.keypoint_names, self.records)
                return record, example, attempt
            except UserError:
                if self.config.broken_images == "fail" or attempt == _REPLACEMENTS:
                    raise
            attempt += 1
            rng = np.random.default_rng([self.seed, step, row, attempt])
            index = int(rng.choice(np.flatnonzero(self.orientation == self.orientation[index])))


def _eval_batch(
    records: Sequence[Record],
    config: DataConfig,
    plan: Sequence[tuple[np.ndarray, int]],
    on_broken: Callable[[Record, UserError], None] | None,
    step: int,
) -> Arrays:
    indices, batch_size = plan[step]
    chosen = [records[index] for index in indices]
    arrays = _blank_images(chosen[0], config, batch_size)
    arrays["original_sizes"] = np.zeros((batch_size, 2), np.int32)
    arrays["valid"] = np.arange(batch_size) < len(chosen)
    for row, record in enumerate(chosen):
        try:
            image = read_resized(record, config.short_side_eval, config)
        except UserError as error:
            if config.broken_images == "fail":
                raise
            arrays["valid"][row] = False
            if on_broken is not None:
                on_broken(record, error)
            continue
        _place_image(arrays, row, record, image)
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
        return BatchIterator(steps.to_iter_dataset(read), from_workers=False)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    ahead = num_workers * (_BATCHES_AHEAD + 2)  # queued, being written, being read
    sharing = grain.experimental.DatasetOptions(min_shm_size=_least_shared_bytes(ahead * batch_bytes))
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_BATCHES_AHEAD)
    batches = grain.experimental.WithOptionsIterDataset(steps.to_iter_dataset(read), sharing)
    return BatchIterator(batches.mp_prefetch(workers, end_with_parent), from_workers=True)


def _least_shared_bytes(needed: int) -> int:
    """From which size on arrays come from the workers through shared memory, and not through a pipe.

    All go through the pipe where the shared memory is too small (64 MB in a Docker container, unless told otherwise):
    writing past its end would kill the worker.
    """
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free < needed:
        return sys.maxsize
    return 1 << 16
