"""Writes a run's numbers to `metrics.jsonl`, to TensorBoard, and to the console."""

import errno
import io
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat, runtime_checkable

from tqdm import tqdm

from mask_rcnn_jax import processes
from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.errors import UserError

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

HISTOGRAM = "histogram/"


@runtime_checkable
class Writer(Protocol):
    """A destination of a run's metrics."""

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None: ...

    def say(self, message: str) -> None: ...


class SilentWriter:
    """Records nothing: of several processes only the first one reports."""

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        pass

    def say(self, message: str) -> None:
        pass


@contextmanager
def open_writer(workdir: Path, total_steps: int, start_step: int, evaluates_again: bool = False) -> Iterator[Writer]:
    """The writer of this process, for as long as the context lasts; arguments as for `MetricsWriter`."""
    if not processes.is_first():
        yield SilentWriter()
        return
    with MetricsWriter(workdir, total_steps, start_step, evaluates_again=evaluates_again) as writer:
        yield writer


class MetricsWriter:
    """Context manager that records metrics by step.

    `workdir/metrics.jsonl` gets a line for each `write`: {"step": ..., name: value, ...}, null for what is not finite.
    `workdir/tensorboard` gets the finite ones, those named `histogram/NAME/BIN` as the histogram NAME. The console
    shows `loss`, the parts `loss/NAME`, `learning_rate`, `images_per_second`, `data_wait` (the share of the time,
    0..1), and the time left: on a terminal in a progress bar, elsewhere as a line. A `write` that has no `loss`, such
    as an evaluation's, leaves the console alone.

    A run that goes on from `start_step` loses what was recorded for later steps, because it will record them again; one
    that `evaluates_again` also the evaluation of that step.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        start_step: int = 0,
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        evaluates_again: bool = False,
    ) -> None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _drop_lines(path, start_step, evaluates_again)
        threads = set(threading.enumerate())
        # The suffix keeps a run that goes on within the second from taking the file of the one before. The queue is
        # endless: where it had an end, a run would wait at it forever for a thread that a full disk has ended.
        # An absolute path, because tensorboardX takes a relative one that begins with "s3:" for a URL.
        folder = os.path.abspath(workdir / "tensorboard")
        try:
            self._tensorboard = _summary_writer()(
                folder, purge_step=start_step + 1, filename_suffix=f".{start_step}", max_queue=0
            )
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{folder} is no folder, or its disk fails; remove it, or mend that") from None
        self._tensorboard_threads = set(threading.enumerate()) - threads
        self._lines = path.open("a")
        self._stream: Any = stream or sys.stdout
        self._clock = clock
        self._total_steps = total_steps
        self._timed_from = (start_step, clock())
        self._compiled = False
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            # The bar has a fixed width so that the numbers keep their place.
            bar_format = "{n_fmt}/{total_fmt} {bar:10} {desc}"
            self._bar = tqdm(
                total=total_steps, initial=start_step, file=self._stream, bar_format=bar_format, dynamic_ncols=True
            )

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Records `metrics` as those of `step`, the number of steps done."""
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"step": step} | {name: finite.get(name) for name in values}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        if not all(thread.is_alive() for thread in self._tensorboard_threads):
            raise OSError(errno.EIO, "writing for TensorBoard has failed")
        for name, value in finite.items():
            if not name.startswith(HISTOGRAM):
                self._tensorboard.add_scalar(name, value, step)
        for name, histogram in histograms(finite).items():
            self._tensorboard.add_histogram_raw(name, **histogram.moments(), global_step=step)
        if "loss" in values:
            self._show(step, values)

    def say(self, message: str) -> None:
        """Prints a message, above the progress bar where there is one."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Closes the files and leaves the progress bar as it stands."""
        if self._bar is not None:
            self._bar.close()
        self._lines.close()
        self._tensorboard.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        text = _console_text(values, self._time_left(step))
        if self._bar is None:
            print(f"step {step}/{self._total_steps}  {text}", file=self._stream, flush=True)
            return
        self._bar.n = step
        self._bar.set_description_str(text)  # also redraws

    def _time_left(self, step: int) -> timedelta:
        """Steps to go at the average speed so far, without the first write's steps: compilation slows those."""
        now = self._clock()
        first_step, first_time = self._timed_from
        seconds_a_step = (now - first_time) / max(step - first_step, 1)
        if not self._compiled:
            self._compiled = True
            self._timed_from = (step, now)
        return timedelta(seconds=round((self._total_steps - step) * seconds_a_step))


def _summary_writer() -> "type[SummaryWriter]":
    """Import TensorBoard's writer as if torch, which it loads where it finds it, were not there: that takes seconds."""
    unloaded = {"torch": None} if "torch" not in sys.modules else {}
    sys.modules.update(unloaded)  # type: ignore[arg-type]
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in unloaded:
            del sys.modules[name]
    return SummaryWriter


@dataclass(frozen=True)
class Histogram:
    """Counts between `edges`, of which there is one more."""

    edges: list[float]
    counts: list[float]

    def moments(self) -> dict[str, Any]:
        """Return TensorBoard's statistics; values count as the centres of their bins."""
        weighted = [
            (count, (left + right) / 2) for count, (left, right) in zip(self.counts, pairwise(self.edges), strict=True)
        ]
        return {
            "min": self.edges[0],
            "max": self.edges[-1],
            "num": sum(self.counts),
            "sum": sum(count * x for count, x in weighted),
            "sum_squares": sum(count * x * x for count, x in weighted),
            "bucket_limits": self.edges[1:],
            "bucket_counts": self.counts,
        }


def histograms(values: Mapping[str, float]) -> dict[str, Histogram]:
    """The histograms of metrics `histogram/NAME/BIN` by NAME.

    A bin begins at the number that ends its name, such as 0.7, and is as wide as the first one. Those of levels, such
    as p3, have their number in the middle, or their place among the levels where their names end in none.
    """
    bins: dict[str, dict[float, float]] = {}
    for name, value in values.items():
        if name.startswith(HISTOGRAM):
            group, _, start = name.removeprefix(HISTOGRAM).rpartition("/")
            of_group = bins.setdefault(group, {})
            number = re.search(r"\d+(\.\d+)?$", start)
            of_group[float(number[0]) if number else len(of_group)] = value
    found = {}
    for group, counts in bins.items():
        starts = sorted(counts)
        width = starts[1] - starts[0] if len(starts) > 1 else 1.0
        shift = width / 2 if group.endswith("_level") else 0.0
        edges = [start - shift for start in (*starts, starts[-1] + width)]
        found[group] = Histogram(edges, [counts[start] for start in starts])
    return found


def _console_text(values: Mapping[str, float], time_left: timedelta) -> str:
    """The most wanted numbers first, because a narrow terminal cuts the end off."""
    units = {"learning_rate": "lr {:.3g}", "images_per_second": "{:.3g} img/s", "data_wait": "wait {:.1%}"}
    parts = [f"loss {values['loss']:.4g}"]
    parts += [unit.format(values[name]) for name, unit in units.items() if name in values]
    parts.append(f"eta {time_left}")
    losses = [f"{name.removeprefix('loss/')} {value:.3g}" for name, value in values.items() if name.startswith("loss/")]
    return "  ".join(parts + ([f"({', '.join(losses)})"] if losses else []))


def _drop_lines(path: Path, step: int, evaluates_again: bool) -> None:
    """Keeps the lines of steps up to `step`, and none that was cut off when a run was killed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        recorded_again = values["step"] == step and evaluates_again and "loss" not in values
        if values["step"] <= step and not recorded_again:
            kept.append(line)
    with replacing(path) as part:
        part.write_text("".join(kept))
