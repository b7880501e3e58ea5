"""This project beside torchvision: whole inference, a training step, and each stage.

    python -m benchmarks.peers                    everything, in three processes one after the other
    python -m benchmarks.peers --only NMS v1 --rounds 3 --processes 1

Run it from the repository's root; it needs torchvision with its compiled operators. Both have the same weights and
inputs, and their results are compared before anything is timed. `side_by_side` says how time is taken, `whole`,
`train_step` and `stages` what exactly each row is.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as torchvision runs here

from benchmarks import stages, train_step, whole
from benchmarks.machine import KEEPS_MEMORY, in_a_process, machine, sentence, write
from benchmarks.side_by_side import Row, measure, summary, table
from mask_rcnn_jax.inference import use_compile_cache

ROWS = [*whole.ROWS, *train_step.ROWS, *stages.ROWS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only rows with one of these texts in their names")
    parser.add_argument("--rounds", type=int, default=7, help="how often each runs in a process (default: 7)")
    parser.add_argument("--processes", type=int, default=3, help="how many, in turn (default: 3)")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/peers.json"), help="file of the figures")
    parser.add_argument("--quick", action="store_true", help="little work, one round: shows that it runs")
    parser.add_argument("--once", action="store_true", help="measures in this process")
    parser.add_argument("--list", action="store_true", help="prints the names of the rows")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or any(text in row.name for text in options.only)]
    if not rows or options.list:
        print("\n".join(row.name for row in ROWS))
        sys.exit(not rows and "no row has that in its name; above are all names")
    if options.once:
        print(json.dumps(measured(rows, options.rounds, options.quick)))
        return
    about = machine("jax", "numpy", "torch", "torchvision", "pycocotools")
    arguments = ["--once", "--rounds", options.rounds, *(["--quick"] * options.quick)]
    arguments += ["--only", *options.only] if options.only else []
    runs = [in_a_process("benchmarks.peers", *arguments, **KEEPS_MEMORY) for _ in range(options.processes)]
    report = [summary(row.name, row.target, of_row) for row, *of_row in zip(rows, *runs, strict=True)]
    write(options.json, about, report)
    print(sentence(about))
    print(table(report))
    print(f"written to {options.json}")


def measured(rows: list[Row], rounds: int, quick: bool) -> list[dict[str, float]]:
    use_compile_cache()
    seconds = []
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        seconds.append(measure(row.build(quick), 1 if quick else rounds))
    return seconds


if __name__ == "__main__":
    main()
