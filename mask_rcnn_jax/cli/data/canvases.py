"""`mask-rcnn canvases`: chooses the canvases of a configuration from the sizes of its images, and prints the settings.

mask-rcnn canvases --config configs/mine.py
mask-rcnn canvases --config coco_r50_fpn_1x --set data.source.root=PATH/TO/coco --count 6
"""

import argparse
import math
import shlex
from collections.abc import Iterator, Sequence

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.cli.runs.experiment import CONFIG_HELP, config_path, load_experiment
from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import DataConfig, Record, trainable_records
from mask_rcnn_jax.data.batching.canvases import choose_canvases, landscape_canvases, padding, training_sizes
from mask_rcnn_jax.data.config import CANVAS_DIVISOR, Canvas
from mask_rcnn_jax.errors import printable
from mask_rcnn_jax.ranges import Range
from mask_rcnn_jax.training import ExperimentConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, prints the settings, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        for line in _chosen(override(load_experiment(options.config), options.set), options.count):
            print(printable(line))

    return run(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn canvases", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=config_path, required=True, help=CONFIG_HELP)
    parser.add_argument(
        "--count",
        type=number(int, Range(1, 16)),
        default=4,
        metavar="N",
        help="canvases for landscape images; as many are their transposes, and each is a program (default: 4)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, as train does",
    )
    return parser


def _chosen(config: ExperimentConfig, count: int) -> Iterator[str]:
    """Say what the canvases of both splits are worth, and then how they are set."""
    data, divisor = config.data, math.lcm(CANVAS_DIVISOR, config.model.backbone.size_divisor)
    train = (
        []
        if data.large_scale_jitter is not None
        else trainable_records(data.source.load(data.source.train_split), data)
    )
    val = data.source.load(data.source.val_split).records
    settings: list[str] = []
    for ending, split, records, of_split in (
        ("", data.source.train_split, train, data),
        ("_eval", data.source.val_split, val, data.in_evaluation()),
    ):
        if not records:
            yield f"{split}: large_scale_jitter fills one canvas, {data.canvas}"
            continue
        line, canvases = _worth(records, of_split, count, divisor)
        yield f"{split}: {line}"
        *smaller, largest = canvases
        settings += [f"data.canvas{ending}={_shown(largest)}", f"data.smaller_canvases{ending}={_listed(smaller)}"]
    yield f"--set {shlex.join(settings)}"


def _worth(records: Sequence[Record], data: DataConfig, count: int, divisor: int) -> tuple[str, tuple[Canvas, ...]]:
    sizes = training_sizes(records, data)
    canvases = choose_canvases(sizes, count, divisor)
    fits = (sizes <= data.canvas).all()
    before = f", with those that are set {padding(sizes, landscape_canvases(data)):.3f}" if fits else ""
    what = f"{len(records)} images at a short side of {' or '.join(map(str, data.short_side))}"
    return f"{what}: {padding(sizes, canvases):.3f} pixels computed for each of theirs{before}", canvases


def _listed(canvases: Sequence[Canvas]) -> str:
    return f"({','.join(map(_shown, canvases))})"


def _shown(canvas: Canvas) -> str:
    return f"({canvas[0]},{canvas[1]})"
