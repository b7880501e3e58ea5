"""`mask-rcnn lint DATASET`: counts what a COCO directory holds, and finds what is wrong with it.

The exit status is 1 where an error was found, something that would hurt training or make its evaluation wrong; 0 with
warnings alone or nothing; 2 where the command line is wrong.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.data.lint import CHECKS, describe, lint
from mask_rcnn_jax.data.sources.coco import CocoConfig
from mask_rcnn_jax.errors import printable

_SHOWN = 5  # findings of a kind that are printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, prints the report, and returns the exit status."""
    options = _parser().parse_args(arguments)
    errors = 0

    def command() -> None:
        nonlocal errors
        report = lint(options.dataset, options.split, options.annotation_file, decode=not options.quick)
        errors = report.count("error")
        if options.json:
            print(json.dumps(report.to_json(), indent=1, allow_nan=False))
        else:
            print(*map(printable, describe(report, None if options.all else _SHOWN)), sep="\n")

    return run(command) or int(errors > 0)


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:22} {check.severity:8} {check.what}" for code, check in CHECKS.items())
    parser = argparse.ArgumentParser(
        prog="mask-rcnn lint",
        description=__doc__,
        epilog=f"checks:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="COCO directory")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="splits to check (all that have annotations)")
    parser.add_argument(
        "--annotation-file",
        default=CocoConfig.annotation_file,
        metavar="PATTERN",
        help="name of the annotation files (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--all", action="store_true", help=f"print every problem and class, not {_SHOWN} of a kind")
    parser.add_argument(
        "--quick", action="store_true", help="read the headers of images alone: finds no truncated files and no copies"
    )
    return parser
