"""Inputs of known geometry for the converters, and rasters made without pycocotools."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mask_rcnn_jax.cli.data.convert import main
from mask_rcnn_jax.data import CocoConfig, load_coco, to_rle
from mask_rcnn_jax.data.lint import lint
from mask_rcnn_jax.rle import decode_window

HEIGHT, WIDTH = 60, 80


def write_image(path: Path, height: int = HEIGHT, width: int = WIDTH, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(os.fsencode(path.name))).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def write_mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def pixel_centres(height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width] + 0.5
    return x, y


def inside(corners, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Pixels whose centre lies inside the polygon: an odd number of its sides is to the right of it."""
    x, y = pixel_centres(height, width)
    odd = np.zeros((height, width), bool)
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y1 != y2:
            odd ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return odd


def block(top: int, left: int, bottom: int, right: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def convert(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def load(root: Path, split: str = "train"):
    report = lint(root, [split])
    assert [finding for finding in report.findings if finding.severity == "error"] == []
    return load_coco(CocoConfig(str(root)), split)


def masks(record) -> list[np.ndarray]:
    window = (0, 0, record.width, record.height)
    return [decode_window(to_rle(part, record.height, record.width), window) for part in record.segmentations]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def named(dataset, record) -> list[str]:
    return [dataset.class_names[index] for index in record.classes]
