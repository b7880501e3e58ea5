"""Images per second that one core loads, stage by stage, beside torchvision's own detection transforms.

    python -m benchmarks.data --data PATH/TO/coco_mini

Both load the same files, one image after the other in one thread, in alternating rounds; a figure is the median over
rounds of images a second of CPU time. Ours ends with arrays padded to the canvas. torchvision's (its detection
reference: polygons to bitmaps as in `ConvertCocoPolysToMask`, then the presets "multiscale" at one scale and "lsj",
on PIL images and on tensors) ends with unpadded tensors, which favours it. Transfer to the device comes on top of ours.
"""

import argparse
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.machine import machine, sentence, write
from mask_rcnn_jax.data import CocoConfig, DataConfig, LargeScaleJitterConfig, Record, load_coco, trainable_records
from mask_rcnn_jax.data.augment import steps, transforms
from mask_rcnn_jax.data.batching.canvases import canvas_numbers
from mask_rcnn_jax.data.batching.loaders import TrainLoader

Seconds = dict[str, float]  # CPU time by stage, and "total" of those that are compared


def settings(root: str) -> dict[str, DataConfig]:
    """The two recipes: Detectron2's test scale with flips, and large-scale jitter."""
    plain = DataConfig(CocoConfig(root), short_side=(800,), max_side=1333, num_workers=0)
    return {
        "800/1333": plain,
        "LSJ 1024": replace(plain, canvas=(1024, 1024), large_scale_jitter=LargeScaleJitterConfig()),
    }


class Stages:
    """A stopwatch of CPU time by stage."""

    def __init__(self) -> None:
        self.seconds: Seconds = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start


# --- Ours -------------------------------------------------------------------------------------------------------------


def ours(records: list[Record], config: DataConfig, seed: int) -> Seconds:
    """The stages one by one, and as "total" the very function that training calls."""
    stage = Stages()
    for row, record in enumerate(records):
        rng = np.random.default_rng([seed, row])
        with stage("read"), record.open() as file:
            encoded = file.read()
        with stage("decode"):
            picture = transforms.open_image(record.path, opener=partial(io.BytesIO, encoded))
        with stage("resize, flip"):
            resize = steps.shortest_edge if config.large_scale_jitter is None else steps.large_scale_jitter
            sample = resize(picture, record, config, rng)
            sample = steps.flip_and_turn(sample, rng, config, np.zeros(0, int))
        with stage("masks"):
            masks = np.zeros((config.max_instances, config.mask_crop, config.mask_crop), np.uint8)
            for slot, mask in enumerate(sample.masks[: config.max_instances]):
                masks[slot] = mask.grid(config.mask_crop)
        with stage("pad"):
            portrait = steps.is_portrait(record)
            image = np.zeros((*(config.canvas[::-1] if portrait else config.canvas), 3), np.uint8)
            height, width = sample.image.shape[:2]
            image[:height, :width] = sample.image
        with stage("transfer"):
            jax.block_until_ready(jax.device_put((image, masks)))
    canvases = canvas_numbers(records, config)
    load = TrainLoader(records, canvases, (), config, np.arange(len(records))[:, None], seed, range(1))
    with stage("total"):
        for step in range(len(records)):
            load(step)
    return stage.seconds


# --- torchvision's ----------------------------------------------------------------------------------------------------


def torchvision_loader(root: Path, kind: str, tensors: bool) -> Callable[[list[Record], int], Seconds]:
    """torchvision's references/detection on the same annotations; `tensors`: its backend "tv_tensor", else "pil"."""
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in json.loads((root / "annotations" / "instances_train.json").read_bytes())["annotations"]:
        if not annotation.get("iscrowd"):
            annotations[annotation["image_id"]].append(annotation)

    class FixedSizeCrop(torch.nn.Module):
        """references/detection/transforms.py: a crop of at most 1024 x 1024 at random, then padding."""

        def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            height, width = functional.get_size(image)
            share = torch.rand(1).item()
            top, left = int(max(height - 1024, 0) * share), int(max(width - 1024, 0) * share)
            size = min(height, 1024), min(width, 1024)
            padding = [0, 0, 1024 - size[1], 1024 - size[0]]

            def cut(item: Any, fill: int) -> Any:
                return functional.pad(functional.crop(item, top, left, *size), padding, fill=fill)

            boxes = functional.clamp_bounding_boxes(cut(target["boxes"], 0))
            return cut(image, 128), target | {"boxes": boxes, "masks": cut(target["masks"], 0)}

    if kind == "LSJ 1024":
        geometry = [v2.ScaleJitter(target_size=(1024, 1024), antialias=True), FixedSizeCrop()]
    else:
        geometry = [v2.RandomShortestSize(min_size=(800,), max_size=1333, antialias=True)]
    to_tensor = [v2.ToImage()]
    transform = v2.Compose(
        [
            *(to_tensor if tensors else []),
            *geometry,
            v2.RandomHorizontalFlip(0.5),
            *([] if tensors else to_tensor),
            v2.ToDtype(torch.float, scale=True),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )

    def to_masks(entries: list[dict[str, Any]], height: int, width: int) -> Any:
        masks = []
        for entry in entries:
            outline = entry["segmentation"]
            mask = coco_mask.decode(
                coco_mask.frPyObjects(outline, height, width) if isinstance(outline, list) else outline
            )
            mask = mask[..., None] if mask.ndim < 3 else mask
            masks.append(torch.as_tensor(mask, dtype=torch.uint8).any(dim=2))
        return torch.stack(masks)

    def load(records: list[Record], seed: int) -> Seconds:
        stage = Stages()
        torch.manual_seed(seed)
        for record in records:
            with stage("read"):
                encoded = Path(record.path).read_bytes()
            with stage("decode"):
                image = Image.open(io.BytesIO(encoded)).convert("RGB")
            with stage("masks"):
                size = (record.height, record.width)
                entries = annotations[record.image_id]
                boxes = torch.as_tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                boxes[:, 0::2].clamp_(min=0, max=size[1])
                boxes[:, 1::2].clamp_(min=0, max=size[0])
                target = {
                    "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
                    "masks": tv_tensors.Mask(to_masks(entries, *size)),
                    "labels": torch.tensor([entry["category_id"] for entry in entries]),
                }
            with stage("resize, flip"):
                transform(image, target)
        stage.seconds["total"] = sum(stage.seconds.values())
        return stage.seconds

    return load


# --- The comparison ---------------------------------------------------------------------------------------------------


def compare(root: Path, num_images: int, rounds: int) -> list[dict[str, Any]]:
    """For each recipe and loader, images a second of CPU time by stage, medians over the rounds."""
    rows = []
    for kind, config in settings(str(root)).items():
        records = list(trainable_records(load_coco(config.source, "train"), config)[:num_images])
        loaders: dict[str, Callable[[list[Record], int], Seconds]] = {
            "mask_rcnn_jax": lambda records, seed, config=config: ours(records, config, seed)
        }
        try:
            loaders["torchvision, PIL"] = torchvision_loader(root, kind, tensors=False)
            loaders["torchvision, tensors"] = torchvision_loader(root, kind, tensors=True)
        except ImportError as error:
            print(f"without torchvision: {error}")
        measured: dict[str, list[Seconds]] = defaultdict(list)
        for load in loaders.values():
            load(records[:2], 0)  # what only the first call does
        for seed in range(rounds):
            for name, load in loaders.items():
                measured[name].append(load(records, seed))
        best, reports = 0.0, []
        for name, seconds in reversed(measured.items()):
            speed = {
                stage: len(records) / max(statistics.median(one[stage] for one in seconds), 1e-9)
                for stage in seconds[0]
            }
            row = {"recipe": kind, "loader": name, "images": len(records), "images_per_second": speed}
            if name.startswith("torchvision"):
                best = max(best, speed["total"])
            elif best:
                row["times_torchvision"] = speed["total"] / best
            reports.append(row)
        rows += reversed(reports)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds an image by stage, images a second of one core, and the ratio to the faster of torchvision's."""
    stages = ["read", "decode", "resize, flip", "masks", "pad", "transfer"]
    lines = [
        "| recipe | loader | " + " | ".join(f"{stage}, ms" for stage in stages) + " | images/s/core | times |",
        "|---|---|" + "---|" * (len(stages) + 2),
    ]
    for row in rows:
        speed = row["images_per_second"]
        cells = [f"{1000 / speed[stage]:.1f}" if stage in speed else "" for stage in stages]
        ratio = f"{row['times_torchvision']:.2f}" if "times_torchvision" in row else ""
        lines.append(f"| {row['recipe']} | {row['loader']} | {' | '.join(cells)} | {speed['total']:.1f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="COCO directory, its train split")
    parser.add_argument("--images", type=int, default=100, help="how many images (default: 100)")
    parser.add_argument("--rounds", type=int, default=5, help="how often, alternating (default: 5)")
    parser.add_argument("--quick", action="store_true", help="two images, one round: shows that it runs")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/data.json"), help="file of the figures")
    options = parser.parse_args()
    about = machine("pillow", "numpy", "torchvision")
    rows = compare(options.data, *((2, 1) if options.quick else (options.images, options.rounds)))
    write(options.json, about, rows)
    print(sentence(about))
    print(table(rows))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
