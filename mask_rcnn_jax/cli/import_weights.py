"""`mask-rcnn import SOURCE --out DIR`: turns published weights into a checkpoint with its configuration and classes.

SOURCE is a detector of torchvision, Detectron2, MMDetection (.pth, .pkl, .safetensors) or Detectron (.pkl).
`mask-rcnn eval --workdir DIR` and `mask-rcnn train --config DIR` then take DIR.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.runs.experiment import CONFIG_HELP, config_path, load_experiment
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import printable
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.training.importing import import_weights, read_classes


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, imports, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        check_place("--out", options.out)
        use_compile_cache()
        classes = None if options.classes is None else read_classes(options.classes)
        experiment = None if options.config is None else load_experiment(options.config)
        for line in import_weights(options.source, options.out, classes, experiment, options.set, options.licence):
            print(printable(line))

    return run(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file of weights")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that becomes the checkpoint")
    parser.add_argument(
        "--classes",
        metavar="FILE|N",
        help="names of the classes, one a line, or COCO annotations, or how many; where they are not as many as the"
        " weights', predictors are kept for those of the same name (default: what the weights were published for)",
    )
    parser.add_argument(
        "--config", type=config_path, help=f"{CONFIG_HELP}, with the model of the weights (default: inferred)"
    )
    parser.add_argument(
        "--licence", metavar="TEXT", help="of the weights (default: what the publisher of such files says of its own)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings of the result"
    )
    return parser
