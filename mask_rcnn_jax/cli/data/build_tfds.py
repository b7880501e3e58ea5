"""`mask-rcnn build-tfds COCO_DIR --out DIR`: writes a COCO directory as ArrayRecord shards, without TensorFlow.

They lie in DIR/NAME afterwards; train from them with data.source=TfdsConfig data.source.data_dir=DIR
data.source.name=NAME. Other programs read them by tfds.data_source("NAME/examples", data_dir="DIR").
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.data import CocoConfig, DataConfig, build_tfds, verify_images
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, writes the shards, and returns the exit status."""
    options = _parser().parse_args(arguments)
    return run(lambda: _build(options), when_interrupted="interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn build-tfds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="COCO_DIR", help="folder with annotations/ and the images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards of all datasets")
    parser.add_argument("--name", help="name of the dataset (default: that of COCO_DIR)")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], metavar="SPLIT", help="default: train val")
    parser.add_argument(
        "--annotation-file",
        default=CocoConfig.annotation_file,
        metavar="NAME",
        help=f"in annotations/, with {{split}} for the split (default: {CocoConfig.annotation_file})",
    )
    return parser


def _build(options: argparse.Namespace) -> None:
    check_place("--out", options.out)
    source = CocoConfig(str(options.root), annotation_file=options.annotation_file)
    name = options.name or options.root.resolve().name.lower().replace("-", "_")
    for split in options.splits:
        # All is written as it is; whoever trains from the shards leaves out the same.
        dataset = verify_images(source.load(split), DataConfig(broken_images="skip"))
        for line in dataset.describe_problems():
            print(printable(line))

    def progress(examples: Iterable, what: str, count: int) -> Iterable:
        return tqdm(examples, what, count, unit=" images", disable=None)

    print(build_tfds(source, options.out, name, options.splits, progress))
