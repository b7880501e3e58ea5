"""The cost of a run: a trace of a few steps, memory, and where the time goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import psutil

from mask_rcnn_jax import processes
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.structures import Batch
from mask_rcnn_jax.training.reporting.metrics import Writer
from mask_rcnn_jax.training.step import Measures, TrainState

FOLDER = "profile"
_WARM_UP, _TRACED = 5, 3  # steps, where none are named
_GIB = 2**30

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Measures]]


@dataclass(frozen=True)
class ProfileSteps:
    """The steps to trace, counted from 1, both included; without them a few after the run has warmed up."""

    first: int | None = None
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> "ProfileSteps":
        """Reads START:STOP; raises `ValueError` where that is something else."""
        first, _, last = text.partition(":")
        steps = cls(int(first), int(last))
        if not 1 <= int(first) <= int(last):
            raise ValueError(f"{text} has no steps")
        return steps

    def of_run(self, start_step: int, num_steps: int) -> tuple[int, int]:
        """The first and last step to trace of a run that goes on after `start_step`.

        Raises `UserError` where it does not come to them.
        """
        if self.first is not None and self.last is not None:
            if self.first <= start_step or self.first > num_steps:
                raise UserError(
                    f"--profile {self.first}:{self.last} names no step of {start_step + 1} to {num_steps}, which this"
                    " run has to go"
                )
            return self.first, min(self.last, num_steps)
        first = min(start_step + _WARM_UP, num_steps)
        return first, min(first + _TRACED - 1, num_steps)


@contextmanager
def profiled(
    step_fn: Any,
    steps: ProfileSteps | None,
    start_step: int,
    num_steps: int,
    workdir: Path,
    writer: Writer,
) -> Iterator[StepFunction]:
    """`step_fn`, which traces the chosen steps into `workdir/profile` as it is called for one step after the other.

    Of several processes the first one traces. A run that ends before the last of the steps keeps what it has.
    """
    if steps is None or start_step >= num_steps:
        yield step_fn
        return
    first, last = steps.of_run(start_step, num_steps)
    if not processes.is_first():
        yield step_fn
        return
    folder, step, tracing = workdir / FOLDER, start_step, False

    def stop() -> None:
        nonlocal tracing
        tracing = False
        jax.profiler.stop_trace()
        writer.say(
            f"traced steps {first} to {step}: drop the newest *.trace.json.gz below {folder} on https://ui.perfetto.dev,"
            f" or run `pip install xprof` and `xprof --logdir {folder}`"
        )

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, Measures]:
        nonlocal step, tracing
        step += 1
        if step == first:
            writer.say(compiled_memory(step_fn, state, batch))
            jax.block_until_ready(state)  # what comes before is not in the trace
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's own calls would crowd the steps out of the trace
            jax.profiler.start_trace(folder, profiler_options=options)
            tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, measures = step_fn(state, batch)
        if step == last:
            jax.block_until_ready((state, measures))
            stop()
        return state, measures

    try:
        yield call
    finally:
        if tracing:
            stop()


def compiled_memory(step_fn: Any, state: TrainState, batch: Batch) -> str:
    """Return the compiler's estimate of a step's memory per device. Compiles it once more, or finds it in the cache."""
    memory = step_fn.lower(state, batch).compile().memory_analysis()
    if memory is None:
        return "the compiler does not say how much memory a step needs"
    inputs, made = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return (
        f"a step needs {(inputs + made + temporary) / _GIB:.2f} GiB on each device: {inputs / _GIB:.2f} for the state"
        f" and the batch, {temporary / _GIB:.2f} for what it computes on the way, {made / _GIB:.2f} for its results"
    )


def memory_in_use() -> dict[str, float]:
    """`memory/host_gib`, of this process and those that load its data, and where the platform tells it
    `memory/device_gib` and `memory/device_peak_gib`, of the device of this process that has most in use.
    """
    host = 0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            host += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended in between
            continue
    memory = {"memory/host_gib": host / _GIB}
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    if stats:
        memory["memory/device_gib"] = max(found["bytes_in_use"] for found in stats) / _GIB
        memory["memory/device_peak_gib"] = max(found["peak_bytes_in_use"] for found in stats) / _GIB
    return memory


class Stopwatch:
    """Seconds by what they were spent on, since the last report and in the whole run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._began = clock, clock()
        self._recent = dict.fromkeys(["data_wait"], 0.0)
        self._total: dict[str, float] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        before = self._clock()
        try:
            yield
        finally:
            self.add(what, self._clock() - before)

    def add(self, what: str, seconds: float) -> None:
        for seconds_of in (self._recent, self._total):
            seconds_of[what] = seconds_of.get(what, 0.0) + seconds

    def take(self, elapsed: float) -> dict[str, float]:
        """`time/WHAT` since the last time this was asked; `time/steps` is what is left of the `elapsed` seconds, in
        which there was no evaluation.
        """
        other = sum(seconds for what, seconds in self._recent.items() if what != "evaluation")
        self.add("steps", max(elapsed - other, 0.0))
        taken = {f"time/{what}": seconds for what, seconds in self._recent.items()}
        self._recent = dict.fromkeys(["data_wait"], 0.0)
        return taken

    def describe(self) -> str:
        """Describe how the run's time was spent, in one line."""
        whole = max(self._clock() - self._began, 1e-9)
        parts = dict(sorted(self._total.items(), key=lambda item: -item[1]))
        parts["the rest"] = max(whole - sum(parts.values()), 0.0)
        spent = ", ".join(f"{what} {seconds:.1f} s ({seconds / whole:.0%})" for what, seconds in parts.items())
        return f"time: {spent}"
