"""`mask-rcnn study FILE.py --workdir DIR`: trains rows of settings with several seeds each, and compares them.

FILE.py has get_study(). Each row and seed is an ordinary run in DIR/ROW/seed_N; what is finished stays, what is not
goes on. Several processes may be given the same DIR: each takes what no other is at.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.runs.experiment import add_deterministic_option
from mask_rcnn_jax.errors import printable
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.studies import load_plan, run_study
from mask_rcnn_jax.training.runs.determinism import use_deterministic_programs


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, trains what is missing, reports, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        if options.deterministic:
            use_deterministic_programs()
        use_compile_cache()
        run_study(load_plan(options.file), options.workdir, options.file.stem, options.rows, _say)

    return run(command, when_interrupted="interrupted; the same command goes on from the last checkpoint")


def _say(line: str) -> None:
    print(printable(line), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE.py", help="Python file with get_study()")
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="folder of the study")
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="train these alone, e.g. on other devices (default: all)"
    )
    add_deterministic_option(parser)
    return parser
