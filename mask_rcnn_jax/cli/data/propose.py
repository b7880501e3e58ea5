"""`mask-rcnn propose`: writes boxes that may hold objects, found by selective search, for models that are given them.

mask-rcnn propose --data DIR --split train --out proposals/train.npz
mask-rcnn propose --config configs/mine.py --split val --out proposals/val.npz

Then data.proposals=ProposalFilesConfig data.proposals.train=proposals/train.npz trains with them. It needs OpenCV
(pip install 'mask-rcnn-jax[proposals]'), and seconds of a processor for each image.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.cli.runs.experiment import CONFIG_HELP, config_path, load_experiment
from mask_rcnn_jax.data import CocoConfig, CocoDataset, DataConfig, ShapesConfig, verify_images, write_proposals
from mask_rcnn_jax.data.proposals.selective_search import (
    Mode,
    SelectiveSearch,
    contributed_segmentation,
    default_workers,
    search_all,
)
from mask_rcnn_jax.data.records import BoxProposals
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.evaluation.recall import LIMITS, proposal_recall
from mask_rcnn_jax.ranges import Range


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, writes the proposals, and returns the exit status."""
    options = _parser().parse_args(arguments)
    return run(lambda: _propose(options), when_interrupted="interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn propose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=config_path, help=CONFIG_HELP)
    source.add_argument("--data", metavar="DIR", help="COCO directory, with the default settings")
    parser.add_argument("--split", help="which images (default: the config's train split)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write: an .npz")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where no earlier propose has written it")
    default = SelectiveSearch()
    parser.add_argument("--mode", choices=get_args(Mode), default=default.mode, help="default: %(default)s")
    parser.add_argument(
        "--side",
        type=number(int, Range(32)),
        default=default.side,
        metavar="PIXELS",
        help="reduce larger images to this longer side for the search (default: %(default)s)",
    )
    parser.add_argument(
        "--most",
        type=number(int, Range(1)),
        default=default.most,
        metavar="N",
        help="proposals of an image (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=number(int, Range(1, 1024)),
        default=default_workers(),
        metavar="N",
        help="processes (default: as many as processors)",
    )
    return parser


def _propose(options: argparse.Namespace) -> None:
    check_place("--out", options.out)
    if options.out.suffix != ".npz" or is_folder(options.out):
        raise UserError(f"--out {options.out}: name a file that ends in .npz")
    contributed_segmentation()
    if options.config is None:
        data = DataConfig(source=CocoConfig(root=options.data, boxes_only=True))
    else:
        data = load_experiment(options.config).data
    dataset = verify_images(data.source.load(options.split or data.source.train_split), data)
    for line in dataset.describe_problems():
        print(printable(line))
    outputs = OutputFolder(options.out.parent, (record.path for record in dataset.records), options.overwrite)
    outputs.check([options.out])
    # Processes that search need no source, and may not know its class.
    reading = replace(data, source=ShapesConfig(), proposals=None)
    search = SelectiveSearch(options.mode, options.side, options.most, reading)
    _check_ids(dataset)
    found = _found(dataset, search, options.workers)
    try:
        with outputs.replacing(options.out) as part, part.open("wb") as file:
            ids = (record.image_id for record in dataset.records)
            write_proposals(file, zip(ids, found, strict=True))
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror or error}") from None
    counts = [len(each.boxes) for each in found]
    print(f"{options.out}: {sum(counts)} proposals of {len(counts)} images, {counts.count(0)} of them without any")
    recalls = proposal_recall(zip(dataset.records, found, strict=True))
    print("best of an image  recall at IoU .5  average recall, IoU .5 to .95")
    for limit, recall, average in zip(LIMITS, *recalls, strict=True):
        print(f"{limit:16}  {recall:16.3f}  {average:29.3f}")


def _check_ids(dataset: CocoDataset) -> None:
    """Raise UserError where the file could not tell whose proposals it holds."""
    if len({record.image_id for record in dataset.records}) < len(dataset.records):
        raise UserError(
            f"{dataset.annotation_file} has image ids that repeat, as in a mixture; search in each source by itself, or"
            " give every image an id of its own"
        )


def _found(dataset: CocoDataset, search: SelectiveSearch, workers: int) -> list[BoxProposals]:
    """The proposals of every image, with a bar of how far it is."""
    records = dataset.records
    return list(tqdm(search_all(search, records, workers), "propose", len(records), unit=" images", disable=None))
