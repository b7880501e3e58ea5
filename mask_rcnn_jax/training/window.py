"""The reported part of a run: the steps since the last report."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np

from mask_rcnn_jax.structures import TrainBatch
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.reporting.metrics import Writer
from mask_rcnn_jax.training.reporting.profiling import Stopwatch, memory_in_use


@dataclass(frozen=True)
class StepValues:
    """The metrics of one step."""

    step: int
    values: dict[str, float]


class Window:
    """The steps since the last report: what they measured, how fast they were, how long they waited for data.

    `stopwatch` takes what else the run spends time on.
    """

    def __init__(self, config: ExperimentConfig, writer: Writer):
        self._config, self._writer = config, writer
        self._pending: tuple[int, Mapping[str, jax.Array], np.ndarray] | None = None
        self.stopwatch = Stopwatch()
        self._restart()

    def _restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._dropped_and_replaced, self._since = np.zeros(2, int), time.monotonic()

    @contextmanager
    def interrupted_by(self, what: str) -> Iterator[None]:
        """Measures what the steps are interrupted by, which does not count as their time."""
        began = time.monotonic()
        with self.stopwatch.of(what):
            yield
        self._since += time.monotonic() - began

    def next(self, batches: Iterator[TrainBatch]) -> TrainBatch:
        """The next batch, and the time it took to come."""
        with self.stopwatch.of("data_wait"):
            batch = next(batches)
        self._counts = np.array([batch.dropped_instances.sum(), batch.replaced_images.sum()])
        return batch

    def add(self, step: int, measures: Mapping[str, jax.Array]) -> StepValues | None:
        """Takes a step's measures and returns those of the step before, if it has not been reported."""
        read = self._read()
        self._pending = (step, measures, self._counts)
        return read

    def flush(self, step: int) -> StepValues | None:
        """Reads the measures up to `step`, returns those that were not read yet, and reports them if there are any.

        So no report is of steps on both sides of a checkpoint, and a run that goes on from one makes the same reports.
        """
        read = self._read()
        if self._values:
            self._report(step)
        return read

    def _read(self) -> StepValues | None:
        if self._pending is None:
            return None
        step, measures, counts = self._pending
        self._pending = None
        self._dropped_and_replaced += counts
        values = {name: float(value) for name, value in jax.device_get(measures).items()}
        self._values.append(values)
        if step % self._config.log_every == 0:
            self._report(step)
        return StepValues(step, values)

    def _report(self, step: int) -> None:
        elapsed = max(time.monotonic() - self._since, 1e-9)
        # A step that was skipped spoils no mean; how many were is told instead.
        taken = [values for values in self._values if not values["skipped_steps"]]
        means = {name: float(np.mean([v[name] for v in taken or self._values])) for name in self._values[0]}
        means["skipped_steps"] = len(self._values) - len(taken)
        means["learning_rate"] = self._values[-1]["learning_rate"]
        means["images_per_second"] = len(self._values) * self._config.batch_size / elapsed
        times = self.stopwatch.take(elapsed)
        means["data_wait"] = times["time/data_wait"] / elapsed
        means["dropped_instances"], means["replaced_images"] = self._dropped_and_replaced.tolist()
        self._writer.write(step, means | times | memory_in_use())
        self._restart()
