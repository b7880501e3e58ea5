"""A run's folder: it belongs to one configuration, and is only ever gone on with."""

import json
import os
from pathlib import Path

from mask_rcnn_jax.config import differences, from_json, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.config import ExperimentConfig

CONFIG_FILE = "config.json"


def read_config(workdir: Path) -> ExperimentConfig | None:
    """The configuration of the run in `workdir`, or None where there is no run."""
    path = workdir / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); use another --workdir") from None
    try:
        return from_json(ExperimentConfig, tree)
    except UserError as error:
        raise UserError(f"{path} does not fit this version: {error}; use another --workdir") from None


def claim(workdir: Path, config: ExperimentConfig) -> None:
    """Makes `workdir` the folder of this run, or checks that it is.

    Raises UserError where it holds a run with another configuration, or files of a run whose configuration is lost.
    """
    present = read_config(workdir)
    if present is not None:
        if different := differences(present, config):
            raise UserError(
                f"{workdir} holds a run with another configuration ({'; '.join(different)}); use another --workdir, or"
                " the run's own settings to go on with it"
            )
        return
    leftovers = [name for name in ("checkpoints", "metrics.jsonl") if (workdir / name).exists()]
    if leftovers:
        raise UserError(f"{workdir} holds {' and '.join(leftovers)} but no {CONFIG_FILE}; use another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        beside = workdir / f"{CONFIG_FILE}.tmp"
        beside.write_text(json.dumps(to_json(config), indent=2) + "\n")
        os.replace(beside, workdir / CONFIG_FILE)
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror or error}") from None
