"""R50-FPN on one GPU beside torchvision on the same: a training step and whole inference in bfloat16.

    python -m benchmarks.accelerator --training-batches 8 16 --inference-batches 1 8

Images of 832 x 1344 (the canvas of Detectron2's recipe), weights and scenes as in `models`: 1000 proposals, 100
instances, 8 objects and about 35 foreground RoIs an image in training. torchvision runs channels last with autocast,
ours with `dtype="bfloat16"`, both with float32 parameters. Both start from what is on the device already: the step is
`train_step`'s; inference goes from images to instances with bitmaps of the image on the device, which is what
`mask-rcnn export --paste-masks` writes and what torchvision's model gives (as probabilities). In bfloat16 two programs
choose other proposals, so what they find is not compared here: `peers` compares it in float32.

Operations are counted in torchvision's convolutions and products (`torch.utils.flop_counter`), once for both programs;
`--peak` is the device's, in TFLOP/s of dense bfloat16. Each row runs in a process of its own; peaks of memory are those
of the two allocators in it.
"""

import argparse
import copy
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two programs share the device

import jax
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.batches import repeated_step
from benchmarks.machine import in_a_process, machine, sentence, write
from benchmarks.models import Pair, pair
from benchmarks.side_by_side import Call, Sides, measure
from benchmarks.train_step import Inputs, draw, experiment, their_step
from mask_rcnn_jax.export.program import ExportSettings, program
from mask_rcnn_jax.export.resize import Preprocessing
from mask_rcnn_jax.structures import Batch

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-batches", nargs="*", type=int, default=[8], metavar="B", help="images a step")
    parser.add_argument("--inference-batches", nargs="*", type=int, default=[1, 8], metavar="B", help="images a call")
    parser.add_argument("--rounds", type=int, default=7, help="how often each runs (default: 7)")
    parser.add_argument(
        "--peak", type=float, default=989.0, help="TFLOP/s of the device (default: an H100's or H200's)"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/accelerator.json"), help="the figures")
    parser.add_argument("--quick", action="store_true", help="a small model, one round: shows that it runs, on CPU too")
    parser.add_argument("--once", nargs=2, metavar=("KIND", "B"), help="measures this row in this process")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measured(options.once[0], int(options.once[1]), options.rounds, options.quick)))
        return
    about, rows = machine("jax", "torch", "torchvision"), []
    print(sentence(about))
    print("| | images/s, ours | theirs | ours / theirs | share of peak | peak memory, GiB |\n|---|--:|--:|--:|---|---|")
    cases = [("training", batch) for batch in options.training_batches]
    cases += [("inference", batch) for batch in options.inference_batches]
    for case in cases:
        arguments = ["--once", *case, "--rounds", options.rounds, *(["--quick"] * options.quick)]
        rows.append(in_a_process("benchmarks.accelerator", *arguments))
        print(line(rows[-1], options.peak), flush=True)
    write(options.json, about, rows)


def measured(kind: str, batch: int, rounds: int, quick: bool) -> dict[str, Any]:
    models = pair("v1", (128, 160), 8) if quick else pair("v1", (832, 1344))
    sides = {"training": training, "inference": inference}[kind](models, batch)
    with FlopCounterMode(display=False) as counter:
        sides.theirs["autocast"]()
    seconds = measure(sides, 1 if quick else rounds)
    return {"kind": kind, "batch": batch, "seconds": seconds, "flop": counter.get_total_flops(), "memory": memory()}


def line(row: dict[str, Any], peak: float) -> str:
    ours, theirs = row["seconds"]["ours"], row["seconds"]["autocast"]
    rates = f"{row['batch'] / ours:.2f} | {row['batch'] / theirs:.2f} | {theirs / ours:.2f}"
    shares = ", ".join(f"{row['flop'] / seconds / peak / 1e12:.1%}" for seconds in (ours, theirs))
    memory = ", ".join("unknown" if size is None else f"{size / 2**30:.1f}" for size in row["memory"])
    return f"| {row['kind']}, {row['batch']} images | {rates} | {shares} | {memory} |"


def training(models: Pair, batch: int) -> Sides:
    inputs = repeated_images(draw(models, 35), batch)
    config = experiment(replace(models.config, dtype="bfloat16"))
    ours = repeated_step(replace(config, batch_size=batch), inputs.batch, models.variables)
    on_device = Inputs(inputs.batch, placed(inputs.images), [placed_target(target) for target in inputs.targets])
    return Sides(ours, {"autocast": finished(their_step(their_model(models), on_device))})


def repeated_images(inputs: Inputs, batch: int) -> Inputs:
    """As many images as `batch` says, the same ones again and again."""
    rows = np.arange(batch) % len(inputs.images)
    content = jax.tree.map(lambda x: x[rows], inputs.batch)
    content = Batch(content.images, content.image_sizes, content.ground_truth, np.arange(batch, dtype=np.int32))
    return Inputs(content, [inputs.images[row] for row in rows], [inputs.targets[row] for row in rows])


def inference(models: Pair, batch: int) -> Sides:
    config, size = replace(models.config, dtype="bfloat16"), models.size
    settings = ExportSettings(size, Preprocessing(min(size), max(size), size), batch, paste_masks=True)
    run = jax.jit(program(config, settings))
    images = jax.device_put(np.stack([models.image] * batch))
    sizes = jax.device_put(np.array([size] * batch, np.int32))
    model = their_model(models)
    tensors = placed([torch.from_numpy(models.image).permute(2, 0, 1).float() / 255] * batch)

    def theirs() -> Any:
        with torch.inference_mode():
            return model(tensors)

    return Sides(lambda: run(models.variables, images, sizes), {"autocast": finished(theirs)})


def their_model(models: Pair) -> nn.Module:
    return InBfloat16(copy.deepcopy(models.formats["channels last"]).to(_DEVICE))


class InBfloat16(nn.Module):
    """The forward pass with autocast; the backward pass follows it, outside, as PyTorch asks."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        with torch.autocast(_DEVICE, torch.bfloat16):
            return self.model(*inputs)


def placed(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.to(_DEVICE) for tensor in tensors]


def placed_target(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(target, placed(target.values()), strict=True))


def finished(call: Call) -> Call:
    """The call, until its work is done."""

    def run() -> None:
        call()
        if _DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def memory() -> tuple[int | None, int | None]:
    """Bytes at the peak, of this project and of torchvision; on CPU they are not known."""
    statistics = jax.devices()[0].memory_stats() or {}
    theirs = torch.cuda.max_memory_allocated() if _DEVICE == "cuda" else None
    return statistics.get("peak_bytes_in_use"), theirs


if __name__ == "__main__":
    main()
