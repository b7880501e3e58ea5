"""`mask-rcnn convert FORMAT INPUT --out DIR`: turns annotations of another format into a COCO directory.

Single objects and images that cannot be used are left out, counted and said.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.data.convert import (
    Case,
    Source,
    Written,
    choose_splits,
    read_cityscapes,
    read_id_masks,
    read_labelme,
    read_via,
    read_yolo,
    write_coco,
)
from mask_rcnn_jax.disk.files import is_file
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.ranges import Range

_SHOWN = 3  # cases of a kind that are printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, converts, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        check_place("--out", options.out)
        source = choose_splits(options.read(options), options.split, options.val_share)
        written = write_coco(source, options.input, options.out, images=options.images, overwrite=options.overwrite)
        for line in describe(written, options.out, None if options.all else _SHOWN):
            print(printable(line))

    return run(command)


def describe(written: Written, out: Path, shown: int | None) -> list[str]:
    """Describe what was converted and what was not, with at most `shown` cases of a kind."""
    lines = [
        f"{out}: {split}: {count} images, {written.instances[split]} objects, {written.crowds[split]} crowds"
        for split, count in written.images.items()
    ]
    names = list(written.categories)
    lines.append(f"{len(names)} classes: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}")
    kinds: dict[str, list[Case]] = {}
    for case in written.cases:
        kinds.setdefault(case.what, []).append(case)
    for what, cases in kinds.items():
        lines.append(f"{len(cases)} {what}:")
        lines += [f"  {case.where}" for case in cases[:shown]]
        if shown is not None and len(cases) > shown:
            lines.append(f"  and {len(cases) - shown} more: --all names them")
    root = shlex.quote(str(out))
    return [
        *lines,
        f"Check it with `mask-rcnn lint {root}`; train with --set data.source=CocoConfig data.source.root={root}",
    ]


def _classes(text: str | None) -> list[str] | None:
    """Names of classes from a text file, one a line, or from a list with commas."""
    if text is None:
        return None
    if is_file(text):
        try:
            names = Path(text).read_text().splitlines()
        except UnicodeDecodeError:
            raise UserError(f"--classes {text} is not a text file; write a name a line.") from None
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError(f"--classes {text} names no class; write a name a line.")
    return names


def _cityscapes(options: argparse.Namespace) -> Source:
    source = read_cityscapes(options.input)
    # The annotations of the test split are kept back: its masks are empty.
    annotated = {split: tasks for split, tasks in source.splits.items() if split != "test"}
    return Source(annotated if options.split is None else source.splits, source.categories)


def _id_masks(options: argparse.Namespace) -> Source:
    classes = _classes(options.classes)
    return read_id_masks(
        options.input, options.class_name, classes, options.void, options.images_dir, options.masks_dir
    )


def _via(options: argparse.Namespace) -> Source:
    classes = _classes(options.classes)
    return read_via(options.input, options.class_key, options.class_name, classes, options.images_dir)


def _labelme(options: argparse.Namespace) -> Source:
    return read_labelme(options.input, _classes(options.classes))


def _yolo(options: argparse.Namespace) -> Source:
    return read_yolo(options.input, _classes(options.classes), options.boxes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)

    def add(name: str, read: Callable[[argparse.Namespace], Source], summary: str) -> argparse.ArgumentParser:
        format_ = formats.add_parser(name, help=summary, description=summary)
        format_.set_defaults(read=read)
        format_.add_argument("input", type=Path, metavar="INPUT", help="folder or file of the annotations")
        format_.add_argument("--out", type=Path, required=True, metavar="DIR", help="COCO directory to write or add to")
        format_.add_argument(
            "--split", metavar="NAME", help="convert this split alone; of an input without splits, its name (train)"
        )
        format_.add_argument(
            "--val-share",
            type=number(float, Range(0, 1, above_low=True, below_high=True)),
            metavar="SHARE",
            help="make this share of an input without splits, such as 0.2, the split val",
        )
        format_.add_argument(
            "--images",
            choices=("link", "symlink", "copy"),
            default="link",
            help="hard links to the images (where there are none symbolic ones, or else copies), symbolic links, or"
            " copies (default: link)",
        )
        format_.add_argument("--overwrite", action="store_true", help="replace splits that DIR holds already")
        format_.add_argument("--all", action="store_true", help=f"print every problem, not {_SHOWN} of a kind")
        return format_

    add("cityscapes", _cityscapes, "Cityscapes: gtFine/*_instanceIds.png, 8 classes; groups become crowds")
    masks = add(
        "id-masks", _id_masks, "masks of object numbers: Pascal VOC's SegmentationObject, Penn-Fudan's PedMasks"
    )
    masks.add_argument("--class-name", default="object", metavar="NAME", help="of masks without classes (object)")
    masks.add_argument("--classes", metavar="FILE|A,B", help="names of the class masks' values 1, 2, ... (VOC's)")
    masks.add_argument(
        "--void", type=number(int, Range(0)), metavar="ID", help="value that is no object (VOC: 255, else none)"
    )
    masks.add_argument("--images-dir", metavar="NAME", help="folder of images in INPUT (PNGImages or images)")
    masks.add_argument("--masks-dir", metavar="NAME", help="folder of masks in INPUT (PedMasks or masks)")
    via = add("via", _via, "VGG Image Annotator 1 and 2: JSON exports and projects")
    via.add_argument("--class-key", metavar="NAME", help="region attribute that names the class (the only one)")
    via.add_argument("--class-name", default="object", metavar="NAME", help="class of regions without any (object)")
    via.add_argument("--classes", metavar="FILE|A,B", help="classes to keep, in order (all, sorted)")
    via.add_argument("--images-dir", type=Path, metavar="DIR", help="folder of the images (that of the JSON file)")
    labelme = add("labelme", _labelme, "LabelMe: a JSON file for each image; shapes of one group are one object")
    labelme.add_argument("--classes", metavar="FILE|A,B", help="labels to keep, in order (all, sorted)")
    yolo = add("yolo", _yolo, "YOLO segmentation: text files of shares of the sides, with data.yaml or classes.txt")
    yolo.add_argument("--classes", metavar="FILE|A,B", help="names of classes 0, 1, ... (those of the files)")
    yolo.add_argument(
        "--boxes", choices=("refuse", "rectangle"), default="refuse", help="lines that hold only a box (refuse)"
    )
    return parser
