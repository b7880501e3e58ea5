"""Losses and gradients that are not finite: what is said, kept, and done about them.

`WORKDIR/divergence/step_NNNNNNNN.npz` holds the batch of such a step, and `step`; where the run stopped there also the
parameters, under `params/...` and `buffers/...`. `mask-rcnn replay` repeats the step from it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mask_rcnn_jax import processes
from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.pretrained import read_tensors
from mask_rcnn_jax.structures import Batch, GroundTruth, Proposals, TrainBatch
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.reporting.metrics import Writer
from mask_rcnn_jax.training.runs.diagnosis import NOTHING, diagnose, named
from mask_rcnn_jax.training.step import TrainState
from mask_rcnn_jax.training.window import StepValues

FOLDER = "divergence"
_KEPT = 20  # batches of skipped steps; a run that skips often must not fill the disk
_INPUTS = ("images", "image_sizes", "example_index")  # arrays of a `Batch`
_TRUTH, _PROPOSALS = "gt_", "given_"  # before the names of the arrays of its `ground_truth` and `proposals`
_NOTES = ("image_ids", "dropped_instances", "replaced_images")  # and of a `TrainBatch`
_ADVICE = (
    "lower schedule.learning_rate, lengthen schedule.warmup_steps, or set optimizer.clip_norm; or let"
    " max_skipped_steps pass over such batches; and train in another --workdir"
)


class Watch:
    """Looks at what steps measured, and stops a run whose losses or gradients are not finite."""

    def __init__(self, config: ExperimentConfig, workdir: Path, writer: Writer):
        self._config, self._workdir, self._writer = config, workdir, writer
        self._batches: dict[int, TrainBatch] = {}

    def keep(self, step: int, batch: TrainBatch) -> None:
        """Remembers a step's batch until the step has been looked at."""
        self._batches[step] = batch

    def check(self, measured: StepValues | None, state: TrainState) -> None:
        """Says what is wrong with a step that is not finite, and keeps its batch.

        Raises `UserError` where the step may not be skipped. `state` is the run's latest: it has the parameters that
        the step started from where the run stops, and may be a step further where it goes on.
        """
        if measured is None:
            return
        batch = self._batches.pop(measured.step)
        bad = sorted(name for name, value in measured.values.items() if not math.isfinite(value))
        if not bad:
            return
        stops = measured.values["skipped_steps"] > self._config.max_skipped_steps
        found = diagnose(self._config, state.variables, batch, measured.step)
        kept = _save(self._workdir, measured.step, batch, state.variables if stops else None)
        # All processes see the same measures, and so all come here.
        everywhere = processes.gather((batch.image_ids.tolist(), found, kept))
        ids = ", ".join(str(image) for images, _, _ in everywhere for image in images)
        first = next((found for _, found, _ in everywhere if not found.startswith(NOTHING)), found)
        what = f"{', '.join(bad)} became infinite or NaN at step {measured.step}, first {first} (images {ids})"
        if stops:
            raise UserError(f"{what}; {kept}; {_ADVICE}")
        self._writer.say(f"{what}; the step was skipped; {kept}")


@dataclass(frozen=True, eq=False)
class KeptStep:
    """A step that was not finite. `variables` are those that it started from, where the run stopped there."""

    step: int  # counted from 1
    batch: TrainBatch
    variables: Variables | None


def load_kept_step(path: Path) -> KeptStep:
    """Reads what a run kept of a step; raises `UserError` where the file is something else."""
    parts: dict[str, dict[str, Any]] = {"params": {}, "buffers": {}}
    try:
        arrays = read_tensors(path)
        step = arrays.pop("step").item()
        for path_in_tree in [name for name in arrays if "/" in name]:
            part, *outer, name = path_in_tree.split("/")
            tree = parts[part]
            for key in outer:
                tree = tree.setdefault(key, {})
                if not isinstance(tree, dict):
                    raise ValueError(f"{path_in_tree} lies in an array")
            tree[name] = arrays.pop(path_in_tree)
        batch = _as_batch(arrays)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no step that a run kept in its folder {FOLDER} ({error})") from None
    return KeptStep(step, batch, Variables(**parts) if parts["params"] else None)


def _as_arrays(batch: TrainBatch) -> dict[str, Any]:
    """The batch's arrays by their names in the file; those of ground truth and proposals begin with their prefix."""
    inputs, truth = batch.inputs, batch.inputs.ground_truth
    arrays = {name: getattr(inputs, name) for name in _INPUTS} | {name: getattr(batch, name) for name in _NOTES}
    for prefix, part in ((_TRUTH, truth), (_PROPOSALS, inputs.proposals)):
        if part is not None:
            arrays |= {prefix + item.name: getattr(part, item.name) for item in fields(part)}
    return {name: array for name, array in arrays.items() if array is not None}


def _as_batch(arrays: Mapping[str, Any]) -> TrainBatch:
    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    truth, given = GroundTruth(**part(_TRUTH)), part(_PROPOSALS)
    proposals = Proposals(**given) if given else None
    inputs = Batch(ground_truth=truth, proposals=proposals, **{name: arrays[name] for name in _INPUTS})
    return TrainBatch(inputs, **{name: arrays[name] for name in _NOTES})


def _save(workdir: Path, step: int, batch: TrainBatch, variables: Variables | None) -> str:
    """Writes the file and says so; or says why there is none: the run's fault must not be hidden by the disk's."""
    index, count = processes.index_and_count()
    folder = workdir / FOLDER
    path = folder / f"step_{step:08}{f'_process{index}' if count > 1 else ''}.npz"
    arrays = {"step": np.int64(step), **_as_arrays(batch)}
    if variables is not None:
        for part in ("params", "buffers"):
            flat = named(jax.device_get(getattr(variables, part)))
            arrays |= {f"{part}/{name}": value for name, value in flat.items()}
    try:
        folder.mkdir(exist_ok=True)
        if variables is None and len(list(folder.glob("*.npz"))) >= _KEPT * count:
            return f"its batch is not kept, {folder} holds {_KEPT} already"
        # An open file: a name would be given the suffix .npz.
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror or error})"
    return f"`mask-rcnn replay {path}` repeats it"
