"""The trained model that a command uses."""

import argparse
from pathlib import Path

from mask_rcnn_jax.inference import Model, load_model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a run or an import, or a checkpoint"
    )
    parser.add_argument("--which", default="best", metavar="best|latest|STEP", help="which weights (default: best)")
    add_average_option(parser)


def add_average_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--average", action="store_true", help="the averaged weights of a run with ema_decay")


def model_of(options: argparse.Namespace) -> Model:
    """The model that the options name.

    Raises UserError as `load_model` does, and for a model that is given its proposals.
    """
    model = load_model(options.checkpoint, options.which, options.average)
    model.check_proposing()
    return model
