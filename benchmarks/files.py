"""Inference from image files to instances as RLEs, on photographs of all sizes as they come, beside torchvision.

    python -m benchmarks.files --data PATH/TO/coco_mini

Ours is `Predictor.stream` over the paths: Pillow decodes, 800/1333 as torchvision resizes, a canvas, `models.detect`,
masks pasted and encoded. torchvision's is, file by file, Pillow, a float tensor, the call of its model, which resizes
the image and pads it to multiples of 32, and each mask thresholded and encoded by pycocotools, as its references'
evaluation does. Both have the same weights, calibrated on some of the images.

The programs take turns at a few images at a time; a figure is the time of all images. Ours runs twice, with the
canvases of `coco_r50_fpn_1x` and with one of 832 x 1344. Programs are compiled before.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from benchmarks.machine import KEEPS_MEMORY, in_a_process, machine, sentence, write
from benchmarks.models import NUM_CLASSES, Pair, calibrated, require
from benchmarks.side_by_side import PAUSE, summary, table
from mask_rcnn_jax.data import CocoConfig, DataConfig, Record, load_coco, read_image
from mask_rcnn_jax.data.batching.canvases import landscape_canvases, padding, training_sizes
from mask_rcnn_jax.inference import Model, Predictor, use_compile_cache
from tests.conformance import reference
from tests.conformance.rows import Row

_BLOCK = 8  # images of a turn
_TARGET = 0.8
_FEW_INSTANCES = 0.03  # by so much of all, both may find different numbers: padding differs at the images' borders
Detect = Callable[[Sequence[str]], int]  # takes the paths of images and returns the number of instances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO directory, such as coco_mini")
    parser.add_argument("--versions", nargs="+", choices=("v1", "v2"), default=["v1", "v2"], help="of R50-FPN")
    parser.add_argument("--images", type=int, help="as many, evenly spread (default: all of val)")
    parser.add_argument("--processes", type=int, default=1, help="how many, in turn (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/files.json"), help="file of the figures")
    parser.add_argument("--quick", action="store_true", help="narrow models, small images: shows that it runs")
    parser.add_argument("--once", action="store_true", help="measures the first version in this process")
    options = parser.parse_args()
    records = chosen(options.data, options.images)
    if options.once:
        print(json.dumps(measured(options.versions[0], records, options.quick)))
        return
    about, rows = machine("jax", "numpy", "pillow", "torch", "torchvision", "pycocotools"), []
    for version in options.versions:
        arguments = ["--once", "--data", options.data, "--versions", version, *(["--quick"] * options.quick)]
        arguments += ["--images", options.images] if options.images else []
        runs = [in_a_process("benchmarks.files", *arguments, **KEEPS_MEMORY) for _ in range(options.processes)]
        for ours, data in settings(options.quick).items():
            seconds = [
                {"ours": run[ours]} | {form: run[form] for form in run if form not in settings()} for run in runs
            ]
            of_eval = data.in_evaluation()
            ratio = padding(training_sizes(records, of_eval), landscape_canvases(of_eval))
            rows.append(summary(f"{version}, {ours}, {ratio:.2f} pixels a pixel", _TARGET, seconds))
    write(options.json, about, rows)
    print(sentence(about))
    print(f"{len(records)} images of {options.data.name}; time of an image")
    print(table(rows))
    print(f"written to {options.json}")


def chosen(root: Path, count: int | None) -> list[Record]:
    records = load_coco(CocoConfig(str(root)), "val").records
    indices = np.linspace(0, len(records) - 1, min(count or len(records), len(records))).round().astype(int)
    return [records[index] for index in np.unique(indices).tolist()]


def settings(quick: bool = False) -> dict[str, DataConfig]:
    """Preprocessing of ours by name."""
    if quick:
        data = DataConfig(short_side_eval=96, max_side=160, canvas=(96, 160), smaller_canvases_eval=((96, 128),))
        one = replace(data, canvas=(128, 192), smaller_canvases_eval=())
    else:
        data = DataConfig(canvas=(800, 1344), smaller_canvases_eval=((800, 896), (800, 1088), (800, 1216)))
        one = replace(data, canvas=(832, 1344), smaller_canvases_eval=())
    named = {"several canvases": data, "one canvas": one}
    return {name: replace(data, resize="torchvision") for name, data in named.items()}


def measured(version: str, records: Sequence[Record], quick: bool) -> dict[str, float]:
    """Seconds of an image by program."""
    use_compile_cache()
    by_name = settings(quick)
    models = pair(version, records, next(iter(by_name.values())), quick)
    programs: dict[str, Detect] = {name: ours(models, data) for name, data in by_name.items()}
    programs |= {form: theirs(model) for form, model in models.formats.items()}
    paths, some = [record.path for record in records], one_of_each_shape(records, by_name["several canvases"])
    check(version, {name: detect(some) for name, detect in programs.items()})  # which compiles and allocates
    seconds = dict.fromkeys(programs, 0.0)
    for start in range(0, len(paths), _BLOCK):
        for name, detect in programs.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            detect(paths[start : start + _BLOCK])
            seconds[name] += time.perf_counter() - began
        print(f"{version}, {min(start + _BLOCK, len(paths))} images: {seconds}", file=sys.stderr, flush=True)
    return {name: total / len(paths) for name, total in seconds.items()}


def check(version: str, found: dict[str, int]) -> None:
    """Raises AssertionError where the programs find different numbers of instances."""
    expected = found["contiguous"]
    assert expected > 0, "torchvision's model finds nothing"
    require(
        Row(version, "files", f"instances of {name}", abs(count - expected) / expected, _FEW_INSTANCES, "of all")
        for name, count in found.items()
    )
    print(f"{version}: instances of some images: {found}", file=sys.stderr, flush=True)


def pair(version: str, records: Sequence[Record], data: DataConfig, quick: bool) -> Pair:
    images = [read_image(record.path) for record in records[:2]]
    sides: Any = {"min_size": (data.short_side_eval,), "max_size": data.max_side}
    return calibrated(version, images, 8 if quick else 1, **sides)


def ours(models: Pair, data: DataConfig) -> Detect:
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    predictor = Predictor(Model(models.config, data, models.variables, names, tuple(range(1, NUM_CLASSES + 1)), 0))

    def detect(paths: Sequence[str]) -> int:
        return sum(len(found.rles or ()) for found in predictor.stream(paths))

    return detect


def theirs(model: nn.Module) -> Detect:
    @torch.inference_mode()
    def detect(paths: Sequence[str]) -> int:
        rles = []
        for path in paths:
            (found,) = model(reference.tensors([read_image(path)]))
            masks = (found["masks"][:, 0] > 0.5).numpy()
            rles += [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
        return len(rles)

    return detect


def one_of_each_shape(records: Sequence[Record], data: DataConfig) -> list[str]:
    """Paths of an image for each canvas and orientation."""
    data = data.in_evaluation()
    options, sizes = np.array(landscape_canvases(data)), training_sizes(records, data)
    taken = (sizes[:, None] <= options).all(axis=2).argmax(axis=1)
    shapes = [(number, record.height > record.width) for number, record in zip(taken.tolist(), records, strict=True)]
    return [records[shapes.index(shape)].path for shape in sorted(set(shapes))]


if __name__ == "__main__":
    main()
