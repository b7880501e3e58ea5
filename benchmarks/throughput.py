"""Images a second of `Predictor` and its peak of memory, by batch size and shape.

    python -m benchmarks.throughput

R50-FPN for 80 classes with random weights, from arrays in memory to instances with RLEs: resized (by 1), run in
batches, masks pasted. Every score counts, so that 100 instances an image are found. Each cell runs in a process of its
own, so that its peak of resident memory, from `getrusage`, is its own; the first batch, which compiles, is not timed.
"""

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.machine import in_a_process, machine, sentence, write
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.inference import Model, Predictor, use_compile_cache
from mask_rcnn_jax.models import MaskRCNNConfig, init
from tests.tiny import tiny_model

SIZES = ("512x512", "800x1088")
BATCHES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW", help="shapes of images")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="B", help="batch sizes")
    parser.add_argument("--images", type=int, default=16, help="images a cell, at least one batch (default: 16)")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/throughput.json"), help="the figures")
    parser.add_argument("--quick", action="store_true", help="a small model, one batch: shows that it runs")
    parser.add_argument("--once", action="store_true", help="measures the first size and batch in this process")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.sizes[0], options.batches[0], options.images, options.quick)))
        return
    about, rows = machine("jax", "numpy", "pycocotools"), []
    print(sentence(about))
    print("| image | batch | images/s | first batch, s | peak memory, MB |\n|---|--:|--:|--:|--:|")
    for size in options.sizes:
        for batch in options.batches:
            arguments = ["--once", "--sizes", size, "--batches", batch, "--images", options.images]
            row = in_a_process("benchmarks.throughput", *arguments, *(["--quick"] * options.quick))
            rows.append(row)
            print(f"| {size} | {batch} | {row['rate']:.2f} | {row['first']:.1f} | {row['peak']:.0f} |", flush=True)
    write(options.json, about, rows)


def measure(size: str, batch: int, images: int, quick: bool) -> dict[str, Any]:
    use_compile_cache()
    height, width = (int(side) for side in size.split("x"))
    predictor = Predictor(model(height, width, quick), batch_size=batch)
    rng = np.random.default_rng(0)
    count = batch if quick else -(-max(images, batch) // batch) * batch
    pictures = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]
    start = time.perf_counter()
    predictor(pictures[:batch])
    between = time.perf_counter()
    found = predictor(pictures)
    seconds = time.perf_counter() - between
    return {
        "size": size,
        "batch": batch,
        "rate": count / seconds,
        "first": between - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "instances": float(np.mean([len(image) for image in found])),
    }


def model(height: int, width: int, quick: bool) -> Model:
    """Random weights score all classes alike and low: with a threshold of 0 every image has all the instances."""
    config = tiny_model() if quick else MaskRCNNConfig()
    config = replace(config, box_head=replace(config.box_head, score_threshold=0.0))
    data = DataConfig(short_side_eval=min(height, width), max_side=max(height, width), canvas=(height, width))
    names = tuple(f"class {number}" for number in range(config.num_classes))
    variables = init(config, jax.random.key(0))
    return Model(config, data, variables, names, tuple(range(1, config.num_classes + 1)), 0)


if __name__ == "__main__":
    main()
