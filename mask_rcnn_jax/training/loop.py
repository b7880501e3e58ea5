"""Training from start to end: data, model, steps, checkpoints, evaluation. One loop, in the order it runs."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from mask_rcnn_jax.data import (
    CocoDataset,
    describe_left_out,
    eval_batches,
    load_dataset,
    train_batches,
    trainable_records,
    verify_images,
)
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import evaluate_model, format_table, keypoint_sigmas
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata, deciding, score
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.metrics import MetricsWriter
from mask_rcnn_jax.training.start import first_variables
from mask_rcnn_jax.training.step import TrainState, init_state, make_mesh, make_train_step, replicate, shard
from mask_rcnn_jax.training.workdir import claim


def train(config: ExperimentConfig, workdir: Path) -> dict[str, float]:
    """Trains in `workdir`, going on from its latest checkpoint where there is one, and returns the last evaluation.

    Raises UserError for what a person can mend, before the first step where it can be known then.
    """
    # Whatever may be wrong with the settings or the data is found before the workdir is touched.
    mesh = make_mesh(config.batch_size)
    datasets = load_datasets(config)
    variables, about_weights = first_variables(config)
    state = init_state(config, variables)
    claim(workdir, config)
    train_set, val_set = datasets["train"], datasets["val"]

    metadata = Metadata(train_set.class_names, train_set.categories)
    with Checkpoints(workdir, config, metadata) as checkpoints:
        start_step = checkpoints.latest_step() or 0
        with MetricsWriter(workdir, config.steps, start_step) as writer:
            left_out = describe_left_out(train_set, config.data)
            for line in (*map(describe, datasets.values()), *left_out, *about_weights):
                writer.say(line)
            state = replicate(state, mesh)
            if start_step:
                state = checkpoints.restore(state)
                writer.say(f"goes on from step {start_step} of {config.steps} in {workdir}")
            batches = train_batches(train_set, config.data, config.batch_size, config.seed, start_step, config.steps)
            step_fn = make_train_step(config, mesh)
            metrics: dict[str, float] = {}
            with closing(batches):
                window = _Window(config, writer)
                for step in range(start_step + 1, config.steps + 1):
                    batch = window.next(batches)
                    state, measures = step_fn(state, shard(Batch.from_arrays(batch), mesh))
                    last = step == config.steps
                    evaluates = last or (config.eval_every > 0 and step % config.eval_every == 0)
                    saves = evaluates or step % config.checkpoint_every == 0
                    # Measures are read one step late, so that the devices never wait for the host.
                    window.add(step, measures)
                    if saves:
                        window.flush(step, report=evaluates)
                    if evaluates:
                        metrics = _evaluate(config, state, val_set, writer, step)
                        window.restart()
                    if saves:
                        # After the evaluation, so that a checkpoint is never without the score it is kept for.
                        checkpoints.save(state, metrics if evaluates else None)
            if start_step >= config.steps:
                writer.say(f"{workdir} has finished its {config.steps} steps already")
                metrics = _evaluate(config, state, val_set, writer, config.steps)
            writer.say(f"finished with {deciding(metrics)} {score(metrics):.4f}; the run is in {workdir}")
    return metrics


def load_datasets(config: ExperimentConfig) -> dict[str, CocoDataset]:
    """The two splits, checked against each other, the model, and the image files."""
    source = config.data.source
    train_set, val_set = load_dataset(source, source.train_split), load_dataset(source, source.val_split)
    if (train_set.categories, train_set.class_names) != (val_set.categories, val_set.class_names):
        raise UserError(f"{train_set.annotation_file} and {val_set.annotation_file} have different categories")
    if len(train_set.class_names) != config.model.num_classes:
        raise UserError(
            f"{train_set.annotation_file} has {len(train_set.class_names)} categories but model.num_classes is"
            f" {config.model.num_classes}; add --set model.num_classes={len(train_set.class_names)}"
        )
    if train_set.boxes_only and config.model.mask_head is not None:
        raise UserError(
            f"{train_set.annotation_file} is read without segmentations; set data.source.boxes_only to false to train"
            " a model with masks, or model.mask_head to none"
        )
    _check_keypoints(config, train_set, val_set)
    train_set, val_set = verify_images(train_set, config.data), verify_images(val_set, config.data)
    trainable_records(train_set, config.data)
    eval_batches(val_set, config.data, 1).close()  # raises where an image cannot fit the canvas
    return {"train": train_set, "val": val_set}


def _check_keypoints(config: ExperimentConfig, train_set: CocoDataset, val_set: CocoDataset) -> None:
    if config.model.keypoint_head is None:
        return
    if train_set.keypoint_names != val_set.keypoint_names:
        raise UserError(f"{train_set.annotation_file} and {val_set.annotation_file} have different keypoints")
    found, expected = len(train_set.keypoint_names), config.model.keypoint_head.num_keypoints
    if found != expected:
        raise UserError(
            f"{train_set.annotation_file} names {found} keypoints but model.keypoint_head.num_keypoints is {expected};"
            " name them in its category, or set the number"
        )
    keypoint_sigmas(val_set, config.evaluation)  # raises where they are needed and not known


def describe(dataset: CocoDataset) -> str:
    """What was read and what was left out, in a few lines."""
    instances = sum(len(record.boxes) for record in dataset.records)
    count = f"{len(dataset.records)} images, {instances} instances, {len(dataset.class_names)} classes"
    return "\n".join([f"{dataset.annotation_file}: {count}", *dataset.describe_problems()])


def _evaluate(
    config: ExperimentConfig, state: TrainState, dataset: CocoDataset, writer: MetricsWriter, step: int
) -> dict[str, float]:
    result = evaluate_model(config.model, config.data, config.evaluation, state.variables, dataset)
    writer.write(step, result.metrics)
    writer.say(f"evaluation at step {step}\n{format_table(result.metrics)}")
    return result.metrics


class _Window:
    """The steps since the last report: what they measured, how fast they were, how long they waited for data."""

    def __init__(self, config: ExperimentConfig, writer: MetricsWriter):
        self._config, self._writer = config, writer
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self.restart()

    def restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._dropped, self._replaced, self._wait, self._since = 0, 0, 0.0, time.monotonic()

    def next(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The next batch, and the time it took to come."""
        before = time.monotonic()
        batch = next(batches)
        self._wait += time.monotonic() - before
        self._dropped += int(batch["dropped_instances"].sum())
        self._replaced += int(batch["replaced_images"].sum())
        return batch

    def add(self, step: int, measures: dict[str, jax.Array]) -> None:
        """Takes a step's measures and reads those of the step before."""
        self._read()
        self._pending = (step, measures)

    def flush(self, step: int, *, report: bool) -> None:
        """Reads the measures of every step up to `step`, so that none is bad, and reports them if there are any."""
        self._read()
        if report and self._values:
            self._report(step)

    def _read(self) -> None:
        if self._pending is None:
            return
        step, measures = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(measures).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"{', '.join(sorted(bad))} became infinite or NaN at step {step}; lower schedule.learning_rate,"
                " lengthen schedule.warmup_steps, or set optimizer.clip_norm, and train in another --workdir"
            )
        self._values.append(values)
        if step % self._config.log_every == 0:
            self._report(step)

    def _report(self, step: int) -> None:
        elapsed = max(time.monotonic() - self._since, 1e-9)
        means = {name: float(np.mean([values[name] for values in self._values])) for name in self._values[0]}
        means["learning_rate"] = self._values[-1]["learning_rate"]
        means["images_per_second"] = len(self._values) * self._config.batch_size / elapsed
        means["data_wait"] = self._wait / elapsed
        means["dropped_instances"] = self._dropped
        means["replaced_images"] = self._replaced
        self._writer.write(step, means)
        self.restart()
