"""Sends a run's numbers to Weights & Biases as well. Optional: `pip install 'mask-rcnn-jax[wandb]'`."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.reporting.metrics import HISTOGRAM, Writer, histograms

_ID_FILE = "wandb_id"
_STEP = "trainer/step"


class WandbWriter:
    """Writes to `writer`, and what is finite to a run of wandb too."""

    def __init__(self, writer: Writer, run: Any, wandb: Any):
        self._writer, self._run, self._wandb = writer, run, wandb

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        self._writer.write(step, metrics)
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}
        logged: dict[str, Any] = {name: value for name, value in finite.items() if not name.startswith(HISTOGRAM)}
        for name, histogram in histograms(finite).items():
            counts, edges = np.array(histogram.counts), np.array(histogram.edges)
            logged[name] = self._wandb.Histogram(np_histogram=(counts, edges))
        # The step as a metric, because wandb's own may not go back when a run goes on from a checkpoint.
        self._run.log(logged | {_STEP: step})

    def say(self, message: str) -> None:
        self._writer.say(message)


@contextmanager
def logged_to_wandb(writer: Writer, project: str, workdir: Path, config: ExperimentConfig) -> Iterator[WandbWriter]:
    """`writer` that also sends to `project`; the run of a workdir goes on as one run there.

    WANDB_MODE=offline keeps it in `workdir/wandb` for `wandb sync`. Raises `UserError` where wandb is not installed, or
    will not start: without a login, or without its server.
    """
    require("wandb", "--wandb")
    import wandb  # pyright: ignore[reportMissingImports]  an extra

    id_file = workdir / _ID_FILE
    known = id_file.read_text().strip() if id_file.exists() else None
    try:
        run = wandb.init(
            project=project,
            name=workdir.resolve().name,
            dir=str(workdir),
            id=known,
            resume="allow" if known else None,
            config=to_json(config),
        )
    except wandb.Error as error:
        raise UserError(
            f"--wandb {project} cannot start ({error}); run `wandb login`, set WANDB_MODE=offline, or leave it out"
        ) from None
    id_file.write_text(f"{run.id}\n")
    run.define_metric("*", step_metric=_STEP)
    try:
        yield WandbWriter(writer, run, wandb)
    finally:
        run.finish()
