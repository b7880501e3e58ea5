"""`mask-rcnn train`: trains a model, and goes on where it stopped when started again with the same workdir."""

import argparse
from pathlib import Path

from mask_rcnn_jax import configs
from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.runs.experiment import (
    CONFIG_HELP,
    add_deterministic_option,
    add_process_options,
    config_path,
    joined_processes,
    load_experiment,
)
from mask_rcnn_jax.config import override
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.training import ExperimentConfig, train
from mask_rcnn_jax.training.reporting.profiling import ProfileSteps
from mask_rcnn_jax.training.runs.determinism import use_deterministic_programs
from mask_rcnn_jax.training.runs.workdir import read_config


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, trains, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        if options.deterministic:
            use_deterministic_programs()
        with joined_processes(options):
            use_compile_cache()
            workdir = options.workdir or Path("runs") / _name(options.config or configs.file_of(configs.DEFAULT))
            settings, from_file = _config(options.config, workdir)
            config = override(settings, options.set)
            if not from_file and config.data.source == settings.data.source:
                config.data.source.check_prepared()  # a folder of unknown origin does not say where to write
            train(config, workdir, options.profile, options.wandb)

    return run(command, when_interrupted="interrupted; the same command goes on from the last checkpoint")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mask-rcnn train", description=__doc__)
    parser.add_argument(
        "--config",
        type=config_path,
        help=f"{CONFIG_HELP} (default: the workdir's, or else {configs.DEFAULT})",
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run (default: runs/NAME of the config)")
    changes = "change settings, for example schedule.learning_rate=0.01"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changes)
    parser.add_argument(
        "--profile",
        nargs="?",
        const=ProfileSteps(),
        type=_profile_steps,
        metavar="START:STOP",
        help="trace these steps, counted from 1, into WORKDIR/profile (without a value: a few after the warm-up)",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="send metrics to this project of Weights & Biases too")
    add_deterministic_option(parser)
    add_process_options(parser)
    return parser


def _profile_steps(text: str) -> ProfileSteps:
    try:
        return ProfileSteps.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STOP, for example 100:105") from None


def _name(config: Path) -> str:
    """The run's name: that of the file, or of the folder, which may have a dot in it."""
    return config.resolve().name if is_folder(config) else config.stem


def _config(file: Path | None, workdir: Path) -> tuple[ExperimentConfig, bool]:
    """The settings, and whether they are a Python file's rather than those stored in a folder."""
    if file is None and (stored := read_config(workdir)) is not None:
        return stored, False
    file = file or configs.file_of(configs.DEFAULT)
    return load_experiment(file), not is_folder(file)
