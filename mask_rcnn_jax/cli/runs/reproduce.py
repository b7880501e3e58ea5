"""`mask-rcnn reproduce WORKDIR`: trains a finished run again in a fresh folder, and compares the two bit for bit.

What differs in code, packages, devices and data is named first. The exit status is 0 where parameters and metrics are
the same, 1 where they are not, and 2 where the run cannot be repeated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.training.runs.reproduce import reproduce


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, trains, prints the verdict, and returns the exit status."""
    options = _parser().parse_args(arguments)

    def command() -> int:
        use_compile_cache()
        workdir: Path = options.workdir
        out = options.out or workdir.resolve().with_name(f"{workdir.resolve().name}-reproduced")
        check_place("--out", out)
        verdict = reproduce(workdir, out, print)
        print("\n".join(verdict.lines))
        what = "reproduced: the same bits" if verdict.same else "NOT reproduced: see above what differs"
        print(f"{workdir} is {what}; the second run is in {out}")
        return int(not verdict.same)

    return run(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="folder of the finished run")
    parser.add_argument("--out", type=Path, help="folder of the second run (default: WORKDIR-reproduced)")
    return parser
