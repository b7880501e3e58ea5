"""Writes a run's numbers to `metrics.jsonl`, to TensorBoard, and to the console."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, SupportsFloat

from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsWriter:
    """Context manager that records metrics by step.

    `workdir/metrics.jsonl` gets a line for each `write`: {"step": ..., name: value, ...}, null for what is not finite.
    `workdir/tensorboard` gets the finite ones. The console shows `loss`, the parts `loss/NAME`, `learning_rate`,
    `images_per_second`, `data_wait` (the share of the time, 0..1), and the time left: on a terminal in a progress bar,
    elsewhere as a line. A `write` that has no `loss`, such as an evaluation's, leaves the console alone.

    A run that goes on from `start_step` loses what was recorded for later steps, because it will record them again.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        start_step: int = 0,
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _drop_lines_after(path, start_step)
        self._lines = path.open("a")
        # The suffix keeps a run that goes on within the second from taking the file of the one before.
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, filename_suffix=f".{start_step}"
        )
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
        for name, value in finite.items():
            self._tensorboard.add_scalar(name, value, step)
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


def _console_text(values: Mapping[str, float], time_left: timedelta) -> str:
    """The most wanted numbers first, because a narrow terminal cuts the end off."""
    units = {"learning_rate": "lr {:.3g}", "images_per_second": "{:.3g} img/s", "data_wait": "wait {:.1%}"}
    parts = [f"loss {values['loss']:.4g}"]
    parts += [unit.format(values[name]) for name, unit in units.items() if name in values]
    parts.append(f"eta {time_left}")
    losses = [f"{name.removeprefix('loss/')} {value:.3g}" for name, value in values.items() if name.startswith("loss/")]
    return "  ".join(parts + ([f"({', '.join(losses)})"] if losses else []))


def _drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines of steps up to `step`, and none that was cut off when a run was killed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    # Written beside and then renamed: a run killed here loses nothing.
    beside = path.with_suffix(".jsonl.tmp")
    beside.write_text("".join(kept))
    os.replace(beside, path)
