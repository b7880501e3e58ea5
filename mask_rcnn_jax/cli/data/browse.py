"""`mask-rcnn browse`: pictures of training examples as the model is given them, with a contact sheet and a page.

Proposals from files are not among what is drawn.

mask-rcnn browse --data DIR --out pictures --set data.copy_paste=1
mask-rcnn browse --config configs/mine.py --out pictures
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.cli.runs.experiment import CONFIG_HELP, config_path, load_experiment
from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import CocoConfig, DataConfig, verify_images
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.ranges import SEED, Range
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.visualize import write_augmented


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, writes the pictures, and returns the exit status."""
    options = _parser().parse_args(arguments)
    return run(lambda: _browse(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn browse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=config_path, help=CONFIG_HELP)
    source.add_argument("--data", metavar="DIR", help="COCO directory, with the default settings")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of what is written")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files in DIR that no earlier browse has written, too"
    )
    parser.add_argument(
        "--num", type=number(int, Range(1)), default=16, metavar="N", help="how many examples (default: 16)"
    )
    shown = "of the run whose first examples are shown (default: the config's)"
    parser.add_argument("--seed", type=number(int, SEED), help=shown)
    parser.add_argument("--split", help="which annotations (default: the config's train split)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, as train does",
    )
    return parser


def _browse(options: argparse.Namespace) -> None:
    check_place("--out", options.out)
    if options.config is None:
        experiment = ExperimentConfig(data=DataConfig(source=CocoConfig(root=options.data)))
    else:
        experiment = load_experiment(options.config)
    experiment = override(experiment, options.set)
    data, seed = experiment.data, experiment.seed if options.seed is None else options.seed
    dataset = verify_images(data.source.load(options.split or data.source.train_split), data)
    for line in dataset.describe_problems():
        print(printable(line))
    outputs = OutputFolder(options.out, (record.path for record in dataset.records), options.overwrite)
    try:
        paths = write_augmented(dataset, data, outputs, options.num, seed)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror or error}") from None
    for path in paths[:2]:
        print(path)
