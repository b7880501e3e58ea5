"""The settings of a command, and the processes that run it."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mask_rcnn_jax import configs, processes
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.disk.files import exists, is_file, is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.python_files import load_config_file
from mask_rcnn_jax.ranges import Range
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.runs.workdir import CONFIG_FILE, read_config

CONFIG_HELP = f"Python file with get_config(), folder of a run, or one of {', '.join(configs.names())}"


def config_path(text: str) -> Path:
    """Return the file or folder that `--config` names.

    A name of the package's configurations is its file, unless a file or a run of that name lies in the current folder.
    """
    path = Path(text)
    is_here = is_file(path) or is_file(path / CONFIG_FILE)
    return path if is_here or text not in configs.names() else configs.file_of(text)


def load_experiment(file: Path) -> ExperimentConfig:
    """Load what `get_config()` of a Python file returns, or the configuration of the run or import in a folder.

    Raises UserError where it is no experiment's configuration.
    """
    if not exists(file):
        known = ", ".join(configs.names())
        raise UserError(f"--config {file} does not exist; name a Python file, the folder of a run, or one of {known}")
    if is_folder(file):
        if (stored := read_config(file)) is None:
            raise UserError(f"--config {file} is a folder without a run's {CONFIG_FILE}")
        return stored
    config = load_config_file(file)
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"get_config() of {file} must return an ExperimentConfig, not {type(config).__name__}")
    return config


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command that several processes run together, one a host or one a device."""
    group = parser.add_argument_group("several processes", "the same command in each of them")
    group.add_argument("--distributed", action="store_true", help="find the others by the cluster (Slurm, MPI, TPU)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="find them by an address of the first process")
    group.add_argument(
        "--processes", type=number(int, Range(1)), metavar="N", help="how many there are, with --coordinator"
    )
    group.add_argument(
        "--process", type=number(int, Range(0)), metavar="I", help="which of them this is, from 0, with --coordinator"
    )


def add_deterministic_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run on one kind of GPU, with slower programs",
    )


def joined_processes(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Return a context in which the processes that the options name, if any, run together; see `processes.joined`."""
    explicit = (options.coordinator, options.processes, options.process)
    if any(value is not None for value in explicit):
        if None in explicit:
            raise UserError("--coordinator, --processes and --process belong together; give all three")
        if not 0 <= options.process < options.processes:
            raise UserError(f"--process {options.process} must be from 0 to --processes {options.processes} - 1")
        return processes.joined(*explicit)
    return processes.joined(None, None, None) if options.distributed else nullcontext()
