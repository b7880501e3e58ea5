"""`mask-rcnn COMMAND ...`: the commands of this project under one name."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from mask_rcnn_jax import __version__
from mask_rcnn_jax.cli.command import leave, leave_out_late_callbacks, run
from mask_rcnn_jax.python_files import load_plugins

# Modules below this folder with a `main(arguments)`. Only the one that is called is imported: most take jax with them.
COMMANDS = {
    "build-tfds": ("data.build_tfds", "write a COCO directory as ArrayRecord shards"),
    "browse": ("data.browse", "draw training examples as the model is given them"),
    "canvases": (
        "data.canvases",
        "choose the sizes that images are padded to, so that few pixels are computed in vain",
    ),
    "convert": ("data.convert", "turn annotations of another format into a COCO directory"),
    "eval": ("eval", "evaluate a checkpoint, and write its metrics, detections and pictures"),
    "export": ("export", "write a model as one file that runs without this package: StableHLO or ONNX"),
    "import": ("import_weights", "turn weights of torchvision or Detectron2 into a checkpoint"),
    "lint": ("data.lint", "count what a dataset holds and find what is wrong with it"),
    "replay": ("runs.replay", "repeat a step whose loss was not finite, and say where that began"),
    "plan": ("plan", "compile a program for TPUs or GPUs that are not there, and say what it will cost"),
    "predict": ("prediction.predict", "find instances in images and write them as pictures, tables, labels, polygons"),
    "propose": ("data.propose", "write boxes that may hold objects, for models that are given their proposals"),
    "reproduce": ("runs.reproduce", "train a finished run again, and compare the two bit for bit"),
    "study": ("runs.study", "train rows of settings with several seeds each, and compare them"),
    "train": ("runs.train", "train a model, from the last checkpoint where there is one"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="mask-rcnn", description=__doc__)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions of the package, jax and Python")
    _add_plugin_option(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    arguments, plugins = _without_plugins(arguments)
    command = parser.parse_args(arguments[:1]).command
    if plugins and (status := run(lambda: load_plugins(plugins))):
        return status
    module = importlib.import_module(f"mask_rcnn_jax.cli.{COMMANDS[command][0]}")
    return module.main(arguments[1:])


def _add_plugin_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="Python file or module whose classes, such as backbones, configurations and checkpoints may name",
    )


def _without_plugins(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command, and the plugins that stand anywhere among them."""
    parser = argparse.ArgumentParser(prog="mask-rcnn", add_help=False, allow_abbrev=False)
    _add_plugin_option(parser)
    options, rest = parser.parse_known_args(arguments)
    return rest, options.plugin


def entry(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command as the whole of a process."""
    leave_out_late_callbacks()
    leave(main(arguments))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # takes longer than all else here

        python = ".".join(map(str, sys.version_info[:3]))
        print(f"mask-rcnn {__version__} (jax {version('jax')}, Python {python})")
        parser.exit()
