"""Compile time of the training step: with an empty cache of programs, and again with what that left there.

    python -m benchmarks.compile_time

R50-FPN for 80 classes, Detectron2's conventions, two images of 512 x 512, each time in a process of its own. Tracing
(Python) and compiling (XLA) are told apart; weights and images do not matter.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.batches import abstract_batch
from benchmarks.machine import in_a_process, machine, sentence, write
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.models import MaskRCNNConfig
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import init_state, make_mesh, make_train_step
from tests.tiny import tiny_model

TARGETS = {"empty cache": 90, "from the cache": 10}  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/compile_time.json"), help="the figures")
    parser.add_argument("--quick", action="store_true", help="a small model: shows that it runs")
    parser.add_argument("--once", action="store_true", help="compiles here, with the cache as it is")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(compile_step(options.quick)))
        return
    about, rows = machine("jax", "flax"), {}
    arguments = ["--once", *(["--quick"] if options.quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name in TARGETS:
            rows[name] = in_a_process("benchmarks.compile_time", *arguments, JAX_COMPILATION_CACHE_DIR=folder)
    write(options.json, about, rows)
    print(sentence(about))
    print("| | tracing, s | compiling, s | together, s | at most |\n|---|--:|--:|--:|--:|")
    for name, row in rows.items():
        together = row["trace"] + row["compile"]
        print(f"| {name} | {row['trace']:.1f} | {row['compile']:.1f} | {together:.1f} | {TARGETS[name]} |")


def compile_step(quick: bool) -> dict[str, float]:
    use_compile_cache()
    model = tiny_model() if quick else MaskRCNNConfig()
    config = ExperimentConfig(model, batch_size=2)
    state = jax.eval_shape(lambda: init_state(config))
    batch = abstract_batch(config, (128, 128) if quick else (512, 512))
    start = time.perf_counter()
    lowered = make_train_step(config, make_mesh(config)).lower(state, batch)
    between = time.perf_counter()
    lowered.compile()
    return {"trace": between - start, "compile": time.perf_counter() - between}


if __name__ == "__main__":
    main()
