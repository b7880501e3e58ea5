"""`python train.py`: trains a model, and goes on where it stopped when started again with the same workdir."""

import argparse
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.experiment import load_experiment, use_compile_cache
from mask_rcnn_jax.config import override
from mask_rcnn_jax.training import ExperimentConfig, train
from mask_rcnn_jax.training.workdir import read_config

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "shapes.py"


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, trains, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        use_compile_cache()
        workdir = options.workdir or Path("runs") / (options.config or DEFAULT_CONFIG).stem
        train(override(_config(options.config, workdir), options.set), workdir)

    return run(command, when_interrupted="interrupted; the same command goes on from the last checkpoint")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        help="Python file with get_config(), or folder of a run (default: the workdir's, or else configs/shapes.py)",
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run (default: runs/NAME of the config)")
    changes = "change settings, for example schedule.learning_rate=0.01"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changes)
    return parser


def _config(file: Path | None, workdir: Path) -> ExperimentConfig:
    if file is None and (stored := read_config(workdir)) is not None:
        return stored
    return load_experiment(file or DEFAULT_CONFIG)
