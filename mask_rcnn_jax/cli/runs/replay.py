"""`mask-rcnn replay FILE`: repeats a step whose loss or gradient was not finite, and says where that began.

FILE is WORKDIR/divergence/step_NNNNNNNN.npz of a run. The exit status is 1 where it is found again, 0 where the step is
finite when it is repeated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.training import restore_for_inference
from mask_rcnn_jax.training.checkpoint import Metadata
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.runs.diagnosis import NOTHING, diagnose
from mask_rcnn_jax.training.runs.divergence import load_kept_step
from mask_rcnn_jax.training.runs.workdir import CONFIG_FILE, read_config
from mask_rcnn_jax.training.start import first_variables


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, repeats the step, and returns the exit status."""
    options = _parser().parse_args(arguments)
    return run(lambda: _replay(options.file, options.checkpoint))


def _replay(file: Path, checkpoint: str | None) -> int:
    use_compile_cache()
    kept = load_kept_step(file)
    workdir = file.resolve().parents[1]
    if (config := read_config(workdir)) is None:
        raise UserError(f"{workdir} has no {CONFIG_FILE}; leave {file.name} in the folder of its run")
    variables, origin = kept.variables, "the parameters that it started from"
    if variables is None or checkpoint is not None:
        variables, origin = _stored(workdir, config, checkpoint)
    print(f"step {kept.step} with {origin}; images {', '.join(map(str, kept.batch.image_ids.tolist()))}")
    found = diagnose(config, variables, kept.batch, kept.step)
    print(f"not finite first: {found}")
    return int(not found.startswith(NOTHING))


def _stored(workdir: Path, config: ExperimentConfig, checkpoint: str | None) -> tuple[Variables, str]:
    """Variables of a checkpoint; of a run that has none yet, those that it began with."""
    if checkpoint is None and not any((workdir / "checkpoints").glob("[0-9]*")):
        return first_variables(config, _names(config))[0], "the parameters that the run began with"
    _, variables, metadata = restore_for_inference(workdir, checkpoint or "latest")
    return variables, f"the parameters of step {metadata.step}"


def _names(config: ExperimentConfig) -> Metadata:
    """The names in the run's data, which predictors from elsewhere go by; none where it began with no such."""
    if config.pretrained is None:
        return Metadata((), ())
    data = config.data.source.load(config.data.source.train_split)
    return Metadata(data.class_names, data.categories, keypoint_names=data.keypoint_names, stuff_names=data.stuff_names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mask-rcnn replay", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="what the run kept of the step")
    parser.add_argument(
        "--checkpoint",
        metavar="STEP",
        help="take the parameters of this checkpoint of the run, or of the 'latest' or 'best' (default: those in FILE,"
        " or else the latest)",
    )
    return parser
