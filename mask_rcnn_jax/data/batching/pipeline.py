"""Batches of fixed shape, prefetched in the background through Grain.

A training batch depends on (seed, step) alone: not on the number of workers or hosts, nor on the step a run was resumed
at. Each host loads its rows of it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import grain
import numpy as np
from absl import flags

from mask_rcnn_jax.data.batching.canvases import canvas_numbers, numbered_canvases, without_rare
from mask_rcnn_jax.data.batching.loaders import EvalLoader, OnBroken, TrainLoader, bytes_of_row
from mask_rcnn_jax.data.batching.plan import plan_batches, repeat_factors
from mask_rcnn_jax.data.batching.workers import BatchIterator, end_with_parent
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.records.packed import Selection
from mask_rcnn_jax.data.sources.shapes import ShapesConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.structures import EvalBatch, TrainBatch

T = TypeVar("T")

_THREADS = min(8, os.cpu_count() or 1)
_BATCHES_AHEAD = 2  # of each worker


def trainable_records(dataset: CocoDataset, config: DataConfig) -> Sequence[Record]:
    """The records that training visits: those with an instance that is no crowd, or all with `keep_empty`, and with
    `min_keypoints` annotated keypoints. Raises `UserError` where that leaves none, and for settings that the dataset
    cannot be trained with.
    """
    if config.copy_paste > 0 and dataset.stuff_names:
        raise UserError(
            f"{dataset.annotation_file} comes with labels of pixels, which copy-paste does not move; set"
            " data.copy_paste to 0, or for a model without a semantic head data.source.panoptic_file to none (of"
            " synthetic shapes data.source.stuff to false)"
        )
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
    steps: range,
    process: tuple[int, int] = (0, 1),
) -> BatchIterator[TrainBatch]:
    """Batches of the steps `steps`, counted from 0, in order; `close()` ends the loading.

    Of the `batch_size` rows of the global batch, a process, given as (its index, their number), loads its share. The
    images of a batch share a canvas, so shapes are at most two for each canvas of `config`.

    `example_index` is step * batch_size + global row. Images are uint8, or float32 with torchvision's resizing.
    Keypoints are there where the dataset has them. Raises `UserError` before the first batch when an image cannot fit
    on the canvas, and with it when an image file turns out unreadable, unless `broken_images` is "skip": then another
    one of its canvas, drawn from (seed, step, row), takes its place.
    """
    index, count = process
    if batch_size % count:
        raise UserError(f"batch_size {batch_size} cannot be shared by {count} processes; make it a multiple.")
    records = trainable_records(dataset, config)
    canvases = without_rare(canvas_numbers(records, config), config, batch_size)
    repeats = repeat_factors(records, config.repeat_threshold) if config.repeat_threshold > 0 else None
    sources = np.array([record.source for record in records])
    mixture = (sources, dataset.weights) if dataset.weights else None
    plan = plan_batches(canvases, batch_size, steps.stop, seed, repeats, mixture)
    share = batch_size // count
    rows = range(index * share, (index + 1) * share)
    # Processes that load need no source, and may not know its class.
    config = replace(config, source=ShapesConfig())
    load = TrainLoader(records, canvases, dataset.keypoint_names, config, plan, seed, rows)
    return _prefetched(load, steps, config.num_workers, share * bytes_of_row(config, bool(dataset.stuff_names)))


def eval_batches(
    dataset: CocoDataset,
    config: DataConfig,
    batch_size: int,
    on_broken: OnBroken | None = None,
    multiple: int = 1,
) -> BatchIterator[EvalBatch]:
    """Every image of the dataset once, without augmentation, canvas by canvas, landscape ones first; the last batch of
    each is filled up with zero images, `valid` False. Where one batch holds all of a canvas, it has the fewest rows
    that do, in a `multiple`.

    Raises `UserError` with the first batch of an image that turns out unreadable, unless `broken_images` is "skip":
    then `on_broken` is called, from the thread that loads, and the image is a zero one with `valid` False.
    """
    config = config.in_evaluation()
    canvases = canvas_numbers(dataset.records, config)[:, 0]
    plan: list[tuple[int, np.ndarray, int]] = []
    for number in range(len(numbered_canvases(config))):
        members = np.flatnonzero(canvases == number)
        rows = min(batch_size, -(-len(members) // multiple) * multiple)
        plan += [(number, members[start : start + rows], rows) for start in range(0, len(members), max(rows, 1))]
    load = EvalLoader(dataset.records, config, plan, on_broken)
    # Pillow decodes and resizes outside the interpreter lock: threads suffice.
    return _prefetched(load, range(len(plan)), num_workers=0)


def _prefetched(load: Callable[[int], T], steps: range, num_workers: int, batch_bytes: int = 0) -> BatchIterator[T]:
    """`load(step)` of each step, computed ahead in processes, or in threads when `num_workers` is 0."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its settings from absl's flags, which only absl programs parse
    loaded = grain.MapDataset.range(steps.start, max(steps.start, steps.stop)).map(load)
    if num_workers == 0:
        read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
        return BatchIterator(loaded.to_iter_dataset(read), from_workers=False)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    ahead = num_workers * (_BATCHES_AHEAD + 2)  # queued, being written, being read
    sharing = grain.experimental.DatasetOptions(min_shm_size=_least_shared_bytes(ahead * batch_bytes))
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_BATCHES_AHEAD)
    batches = grain.experimental.WithOptionsIterDataset(loaded.to_iter_dataset(read), sharing)
    return BatchIterator(batches.mp_prefetch(workers, end_with_parent), from_workers=True)


def _least_shared_bytes(needed: int) -> int:
    """From which size on arrays come from the workers through shared memory, and not through a pipe.

    All go through the pipe where the shared memory is too small (64 MB in a Docker container, unless told otherwise):
    writing past its end would kill the worker.
    """
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free < needed:
        return sys.maxsize
    return 1 << 16
