"""The cells of a study: one run of one row and one seed each, and what is kept of them beside the run.

`DIR/ROW/seed_N` is the run's folder, as of any run. Its folder `study` has `detections.json` (COCO results of the
checkpoint that counts), `outcome.json` (its metrics, what they are of, and the hashes of the run), and `resamples.json`
(the deciding metrics of other draws of the images). What cannot be read of these is made again.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mask_rcnn_jax.data import CocoDataset, fingerprint, load_split, verify_images
from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import evaluate_model
from mask_rcnn_jax.evaluation.bootstrap import draw_images, resampled_metrics
from mask_rcnn_jax.evaluation.coco import Kind
from mask_rcnn_jax.studies.plan import Plan
from mask_rcnn_jax.training import ExperimentConfig, restore_for_inference, train
from mask_rcnn_jax.training.runs.provenance import RESULT_FILE
from mask_rcnn_jax.training.runs.workdir import locked

_LOCK = ".study-lock"  # held beside the run's own, as what follows the run is one process's, too
Say = Callable[[str], None]

_KINDS: tuple[Kind, ...] = ("bbox", "segm", "keypoints")


@dataclass(frozen=True)
class Cell:
    """A run of a study."""

    row: str
    seed: int
    config: ExperimentConfig
    workdir: Path

    @property
    def name(self) -> str:
        """Its folder below the study's."""
        return f"{self.row}/seed_{self.seed}"


def cells_of(plan: Plan, folder: Path) -> list[Cell]:
    """Return the cells in the order in which they are trained: every row with the first seed, then with the next."""
    cells = [Cell(row.name, seed, replace(row.config, seed=seed), folder) for seed in plan.seeds for row in plan.rows]
    return [replace(cell, workdir=folder / cell.name) for cell in cells]


def finish(cell: Cell, plan: Plan, say: Say) -> None:
    """Train, evaluate and resample the cell, as far as that has not been done.

    Raises `AtWork` where another process has it, `UserError` where it fails for a reason that a person can mend, and
    `Stopped` where a signal ended its training.
    """
    with locked(cell.workdir, _LOCK) as told:
        for line in told:
            say(line)
        if not _is_trained(cell):
            train(cell.config, cell.workdir)
        if read_outcome(cell, plan) is None:
            _evaluate(cell, plan, say)
        if read_resamples(cell, plan) is None:
            _resample(cell, plan, say)


def is_finished(cell: Cell, plan: Plan) -> bool:
    """Tell whether nothing is left to be done for the cell."""
    return read_outcome(cell, plan) is not None and read_resamples(cell, plan) is not None


def read_outcome(cell: Cell, plan: Plan) -> dict[str, Any] | None:
    """Return "step", "metrics" (NaN where undefined), "data" and "result" of the checkpoint that counts, None where it
    has not been evaluated since the run last came to its end.
    """
    outcome = _table(_file(cell, "outcome"))
    if outcome is None or not _is_trained(cell) or outcome.get("of") != _identity(cell, plan):
        return None
    metrics = {name: math.nan if value is None else value for name, value in outcome["metrics"].items()}
    return outcome | {"metrics": metrics, "result": outcome["of"]["result"]}


def read_resamples(cell: Cell, plan: Plan) -> dict[str, list[float]] | None:
    """Return each deciding metric that was resampled in its draws (NaN where undefined), None where they are missing.

    None are drawn with `resamples=0`, of averaged weights, and of LVIS.
    """
    if plan.resamples == 0:
        return {}
    found = _table(_file(cell, "resamples"))
    if found is None or found.get("of") != _draws_of(cell, plan):
        return None
    return {name: [math.nan if x is None else x for x in values] for name, values in found["metrics"].items()}


def _is_trained(cell: Cell) -> bool:
    result = _table(cell.workdir / RESULT_FILE)
    return result is not None and result.get("step") == cell.config.steps


def _evaluate(cell: Cell, plan: Plan, say: Say) -> None:
    config = cell.config
    _, variables, metadata = restore_for_inference(cell.workdir, plan.checkpoint)
    result = evaluate_model(
        config.model, config.data, config.evaluation, variables, _images(config), metadata.class_names
    )
    # Training has evaluated the averaged weights, too.
    metrics = (metadata.metrics or {}) | result.metrics
    outcome = {
        "of": _identity(cell, plan),
        "step": metadata.step,
        "metrics": {name: _or_none(value) for name, value in metrics.items()},
        "data": fingerprint(result.dataset, with_proposals=False),
    }
    _write(_file(cell, "detections"), result.results)
    _write(_file(cell, "outcome"), outcome)
    # While the images that turned out to be unreadable are known.
    _write_resamples(cell, plan, result.dataset, result.results, say)


def _resample(cell: Cell, plan: Plan, say: Say) -> None:
    """Draw again from the detections that are kept, or evaluate again where they are not those of the images here."""
    outcome, detections = read_outcome(cell, plan), _read(_file(cell, "detections"))
    images = _images(cell.config)
    if outcome is None or detections is None or outcome["data"] != fingerprint(images, with_proposals=False):
        _evaluate(cell, plan, say)
    else:
        _write_resamples(cell, plan, images, detections, say)


def _images(config: ExperimentConfig) -> CocoDataset:
    return verify_images(load_split(config.data, config.data.source.val_split), config.data)


def _write_resamples(
    cell: Cell, plan: Plan, images: CocoDataset, detections: Sequence[dict[str, Any]], say: Say
) -> None:
    found: dict[str, list[float | None]] = {}
    if plan.resamples and not images.frequencies:
        outcome = read_outcome(cell, plan)
        names = [name for name in plan.metrics if outcome is not None and name in outcome["metrics"]]
        say(f"study: {cell.name}: its {len(images.records)} images are drawn {plan.resamples} times")
        draws = draw_images(len(images.records), plan.resamples, plan.bootstrap_seed)
        for kind in _KINDS:
            if any(name.startswith(f"{kind}/") for name in names):
                drawn = resampled_metrics(images, detections, kind, cell.config.evaluation, names, draws)
                found |= {name: list(map(_or_none, values.tolist())) for name, values in drawn.items()}
    _write(_file(cell, "resamples"), {"of": _draws_of(cell, plan), "metrics": found})


def _identity(cell: Cell, plan: Plan) -> dict[str, Any]:
    """The run's end and the checkpoint that an outcome must be of to count."""
    return {"checkpoint": plan.checkpoint, "result": _table(cell.workdir / RESULT_FILE)}


def _draws_of(cell: Cell, plan: Plan) -> dict[str, Any]:
    return {
        "resamples": plan.resamples,
        "seed": plan.bootstrap_seed,
        "metrics": list(plan.metrics),
        "outcome": _table(_file(cell, "outcome")),
    }


def _file(cell: Cell, name: str) -> Path:
    return cell.workdir / "study" / f"{name}.json"


def _table(path: Path) -> dict[str, Any] | None:
    content = _read(path)
    return content if isinstance(content, dict) else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def _write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(content, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); mend that") from None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
