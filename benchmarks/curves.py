"""Growth of time and memory with the work.

    python -m benchmarks.curves

A training step of two images against the images' area, RoIs an image, ground-truth slots, classes and virtual devices
(a batch of four then), and detection against the number of proposals. The model is R50-FPN with four times fewer
channels, for 80 classes and images of 256 x 256 where nothing else is said. Each point is the median of several calls
in a process of its own. "Growth" is the time over that of the first point, divided by as much work: above 1 it grows
faster than its work. Virtual devices share the cores, so that their work is the same. Memory is what XLA says that the
program needs: its inputs, results and what it holds in between, on one device.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.batches import random_batch, repeated_step
from benchmarks.machine import in_a_process, machine, sentence, write
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.inference import use_compile_cache
from mask_rcnn_jax.models import BoxHeadConfig, FPNConfig, MaskHeadConfig, MaskRCNNConfig, ResNetConfig, detect, init
from mask_rcnn_jax.training import ExperimentConfig, ScheduleConfig

CURVES = {  # what grows: its values
    "side of the image": (256, 384, 512),
    "RoIs an image": (128, 256, 512),
    "ground-truth slots": (25, 100, 400),
    "classes": (80, 1203),
    "images a step": (1, 2, 4),
    "virtual devices": (1, 2, 4),
    "proposals, detection": (250, 500, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only curves with one of these texts in their names")
    parser.add_argument("--calls", type=int, default=5, help="calls of each point (default: 5)")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/curves.json"), help="file of the figures")
    parser.add_argument("--point", nargs=2, metavar=("CURVE", "VALUE"), help="measures this point in this process")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.point[0], int(options.point[1]), options.calls)))
        return
    about, rows = machine("jax", "flax"), []
    print(sentence(about))
    print("| | | ms | growth | memory, MB |\n|---|--:|--:|--:|--:|")
    for curve, values in CURVES.items():
        if options.only and not any(text in curve for text in options.only):
            continue
        first = None
        for value in values:
            point = in_a_process("benchmarks.curves", "--calls", options.calls, "--point", curve, value)
            row = {"curve": curve, "value": value} | point
            first = first or row
            growth = row["seconds"] / first["seconds"] / (work(curve, value) / work(curve, values[0]))
            rows.append(row | {"growth": growth})
            print(
                f"| {curve} | {value} | {1e3 * row['seconds']:.0f} | {growth:.2f} | {row['memory']:.0f} |", flush=True
            )
    write(options.json, about, rows)


def work(curve: str, value: int) -> float:
    return {"side of the image": value**2, "virtual devices": 1}.get(curve, value)


def measure(curve: str, value: int, calls: int) -> dict[str, float]:
    if curve == "virtual devices":
        jax.config.update("jax_num_cpu_devices", value)
    use_compile_cache()
    program, call = detection(value) if curve == "proposals, detection" else step(curve, value)
    jax.block_until_ready(call())
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    needs = program.memory_analysis()
    held = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    return {"seconds": statistics.median(seconds), "memory": (held + needs.temp_size_in_bytes) / 1e6}


def model() -> MaskRCNNConfig:
    return MaskRCNNConfig(
        backbone=FPNConfig(bottom_up=ResNetConfig(width=16), channels=64),
        box_head=BoxHeadConfig(fc_channels=256),
        mask_head=MaskHeadConfig(channels=64),
    )


def step(curve: str, value: int) -> tuple[Any, Callable[[], Any]]:
    """The compiled program, and a call of it."""
    network, side = model(), value if curve == "side of the image" else 256
    if curve == "RoIs an image":
        network = replace(network, box_head=replace(network.box_head, samples=value))
    if curve == "classes":
        network = replace(network, num_classes=value)
    slots = value if curve == "ground-truth slots" else 100
    size = {"images a step": value, "virtual devices": 4}.get(curve, 2)
    # The rate is 0: what is measured must not drift.
    schedule = ScheduleConfig(learning_rate=0.0, warmup_steps=0)
    config = ExperimentConfig(network, DataConfig(max_instances=slots), schedule=schedule, batch_size=size)
    call = repeated_step(config, random_batch(config, (side, side)))
    return call.program, call


def detection(proposals: int) -> tuple[Any, Callable[[], Any]]:
    config = model()
    config = replace(config, rpn=replace(config.rpn, post_nms_test=proposals))
    variables = init(config, jax.random.key(0))
    images = jax.random.randint(jax.random.key(0), (1, 256, 256, 3), 0, 256).astype(jnp.uint8)
    inputs = variables, images, jnp.full((1, 2), 256, jnp.int32)
    program = (
        jax.jit(lambda variables, images, sizes: detect(config, variables, images, sizes)).lower(*inputs).compile()
    )
    return program, lambda: program(*inputs)


if __name__ == "__main__":
    main()
