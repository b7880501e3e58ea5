"""`mask-rcnn eval`: evaluates a checkpoint and writes its metrics, detections and pictures."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax

from mask_rcnn_jax import processes
from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.model import add_average_option
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.cli.runs.experiment import (
    CONFIG_HELP,
    add_deterministic_option,
    add_process_options,
    config_path,
    joined_processes,
    load_experiment,
)
from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import load_split, verify_images
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.disk.places import check_place, run_folder
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.evaluation import EvaluationResult, check_stuff, evaluate_model, format_table
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.models import MaskRCNNConfig, Variables, abstract
from mask_rcnn_jax.ranges import Range
from mask_rcnn_jax.training import ExperimentConfig, restore_for_inference
from mask_rcnn_jax.training.datasets import check_alike, check_proposals
from mask_rcnn_jax.training.runs.determinism import use_deterministic_programs
from mask_rcnn_jax.training.runs.workdir import read_config
from mask_rcnn_jax.visualize import picture_files, write_pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, evaluates, and returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.workdir is None and not _is_path(options.checkpoint):
        parser.error("give --workdir DIR, or --checkpoint PATH")

    def command() -> None:
        if options.deterministic:
            use_deterministic_programs()
        with joined_processes(options):
            _evaluate(options)

    return run(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mask-rcnn eval", description=__doc__)
    parser.add_argument("--workdir", type=Path, help="folder of the training run")
    parser.add_argument("--config", type=config_path, help=f"{CONFIG_HELP} (default: the run's own settings)")
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|latest|STEP|PATH", help="which weights (default: best)"
    )
    add_average_option(parser)
    parser.add_argument("--split", help="which annotations (default: the config's val split)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, e.g. data.source.root=DIR",
    )
    parser.add_argument(
        "--pictures", type=number(int, Range(0)), default=8, metavar="N", help="how many images to draw (default: 8)"
    )
    parser.add_argument("--out", type=Path, help="folder of what is written (default: eval in the run's folder)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files there that no earlier evaluation has written, too"
    )
    add_deterministic_option(parser)
    add_process_options(parser)
    return parser


def _evaluate(options: argparse.Namespace) -> None:
    use_compile_cache()
    is_path = _is_path(options.checkpoint)
    source = Path(options.checkpoint) if is_path else options.workdir
    out = options.out or run_folder(options.workdir or source) / "eval"
    check_place("--out", out)
    stored, variables, metadata = restore_for_inference(
        source, "best" if is_path else options.checkpoint, options.average
    )
    config = override(_config(options, stored), options.set)
    _check_fits(config.model, variables)
    check_proposals(config)
    dataset = load_split(config.data, options.split or config.data.source.val_split)
    dataset = verify_images(dataset, config.data)
    check_alike({"eval": dataset})
    check_stuff(metadata.stuff_names, config.model, dataset)
    outputs = OutputFolder(out, [dataset.annotation_file, *(r.path for r in dataset.records)], options.overwrite)
    outputs.check([*_files(out), *picture_files(dataset, out, options.pictures)])
    images = f"{len(dataset.records)} images of {dataset.annotation_file}"
    if processes.is_first():
        licence = [f"licence of the weights: {metadata.licence}"] if metadata.licence else []
        print(
            *map(printable, [*dataset.describe_problems(), *licence]),
            f"evaluating step {metadata.step} of {source} on {images}",
            sep="\n",
        )
    result = evaluate_model(config.model, config.data, config.evaluation, variables, dataset, metadata.class_names)
    if not processes.is_first():
        return
    print(format_table(result.metrics), *map(printable, result.left_out), sep="\n")
    shown, limit = result.dataset, config.data.max_pixels
    try:
        _write(result, metadata.step, outputs)
        pictures = write_pictures(shown, result.results, outputs, options.pictures, max_pixels=limit)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    print(*_files(out), *pictures, sep="\n")


def _is_path(checkpoint: str) -> bool:
    return checkpoint not in ("best", "latest") and not checkpoint.isdigit()


def _config(options: argparse.Namespace, stored: ExperimentConfig) -> ExperimentConfig:
    if options.config is None:
        return (options.workdir and read_config(options.workdir)) or stored
    return load_experiment(options.config)


def _check_fits(model: MaskRCNNConfig, variables: Variables) -> None:
    """Raises UserError where the settings describe another network than the checkpoint's."""
    expected = _shapes(abstract(model))
    found = _shapes(variables)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"the settings describe another model than the checkpoint: {name} is {expected.get(name, 'absent')}"
                f" there and {found.get(name, 'absent')} in the checkpoint; leave --config and --set model... away"
            )


def _shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _files(out: Path) -> list[Path]:
    """The files of the metrics and of the detections."""
    return [out / "metrics.json", out / "detections.json"]


def _write(result: EvaluationResult, step: int, outputs: OutputFolder) -> None:
    metrics = {name: value if math.isfinite(value) else None for name, value in result.metrics.items()}
    texts = json.dumps({"step": step} | metrics, indent=2), json.dumps(result.results)
    for file, text in zip(_files(outputs.root), texts, strict=True):
        with outputs.replacing(file) as part:
            part.write_text(text + "\n")
