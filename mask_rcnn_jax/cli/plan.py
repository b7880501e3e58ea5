"""`mask-rcnn plan --device h200:8`: compiles a program for devices that are not there, and says what it will cost.

Known is then whether it compiles and fits, how many images fit, how long compiling takes, what it multiplies, moves and
sends to other devices, stage by stage, how often a GPU waits for the host, and what time it cannot be faster than.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import jax

from mask_rcnn_jax import configs
from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.cli.runs.experiment import CONFIG_HELP, config_path, load_experiment
from mask_rcnn_jax.config import override
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.planning.budget import remedy
from mask_rcnn_jax.planning.compiling import Plan, compiled_plan, shared_mesh
from mask_rcnn_jax.planning.devices import HARDWARE, target
from mask_rcnn_jax.planning.report import as_json, text
from mask_rcnn_jax.ranges import Range
from mask_rcnn_jax.training import ExperimentConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, compiles, prints, and returns the exit status: 2 where nothing fits."""
    options = _parser().parse_args(arguments)
    return run(lambda: _plan(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(each.example for each in HARDWARE.values())
    parser.add_argument("--device", required=True, help=f"kind and number, such as {known}")
    parser.add_argument(
        "--config",
        type=config_path,
        default=configs.file_of(configs.DEFAULT),
        help=f"{CONFIG_HELP} (default: {configs.DEFAULT})",
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings")
    parser.add_argument("--what", choices=("train", "detect"), default="train", help="a training step, or detection")
    parser.add_argument(
        "--batch",
        nargs="+",
        type=number(int, Range(1)),
        metavar="N",
        help="images over all devices, each number a column (default: the config's)",
    )
    parser.add_argument(
        "--remat",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also with these networks computed again for their gradients (model.remat), as columns of their own",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=number(int, Range(1)),
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of an image with its padding (default: the config's canvas)",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, not the table")
    return parser


def _plan(options: argparse.Namespace) -> None:
    devices = target(options.device)
    config = override(load_experiment(options.config), options.set)
    size = _size(options, config)
    if options.remat and options.what == "detect":
        raise UserError("--remat is for gradients, which detection has none of; omit it")
    devices.require_compiler()
    described = devices.devices()
    columns = _columns(config, options, len(described))
    meshes = [shared_mesh(column, described, options.what) for column in columns]
    with _without_cache():
        plans = [
            compiled_plan(column, devices, mesh, options.what, size)
            for column, mesh in zip(columns, meshes, strict=True)
        ]
    print(json.dumps(as_json(plans), indent=2) if options.json else text(plans))
    _check_some_fit(plans)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Compile whatever was compiled before, too: the time that it takes is one of the answers."""
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


def _size(options: argparse.Namespace, config: ExperimentConfig) -> tuple[int, int]:
    data = config.data.in_evaluation() if options.what == "detect" else config.data
    height, width = options.size or data.canvas
    divisor = config.model.backbone.size_divisor
    if height % divisor or width % divisor:
        raise UserError(f"--size {height} {width}: model.backbone takes sides that are multiples of {divisor}")
    return height, width


def _columns(config: ExperimentConfig, options: argparse.Namespace, devices: int) -> list[ExperimentConfig]:
    """The configuration of each program. How many images a device takes is the plan's question, not a setting's."""
    default = config.batch_size if options.what == "train" else config.evaluation.images_per_device * devices
    columns = []
    for remat in [None, options.remat] if options.remat else [None]:
        changes = [] if remat is None else [f"model.remat={','.join(remat)}"]
        changed = replace(override(config, changes), images_per_device=None)
        columns += [override(changed, [f"batch_size={batch}"]) for batch in options.batch or [default]]
    return columns


def _check_some_fit(plans: Sequence[Plan]) -> None:
    """Raises UserError where no program fits, or none compiles."""
    if any(plan.fits for plan in plans):
        return
    for plan in plans:
        if plan.memory is not None or plan.needed is not None:
            raise UserError(remedy(plan, plans))
    raise UserError(f"the compiler of {plans[0].target} refuses the program: {plans[0].failure}")
