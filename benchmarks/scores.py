"""COCO's metrics of boxes and masks of 100 images, from annotations and results to numbers.

The annotations are 7 ellipses an image of 80 classes; the results are each of them moved a little, and others, 100 an
image. Theirs is what torchvision's references do: `COCO`, `loadRes`, and `COCOeval`'s `evaluate`, `accumulate` and
`summarize` for each kind.
"""

import contextlib
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.models import require
from benchmarks.side_by_side import Sides
from mask_rcnn_jax.data import CocoDataset, Record, to_rle
from mask_rcnn_jax.evaluation import EvaluationConfig, score_results
from tests.conformance.rows import Row as Difference

_HEIGHT, _WIDTH, _CLASSES = 480, 640, 80
_OBJECTS, _RESULTS = 7, 100
KINDS: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm")


def score_sides(quick: bool) -> Sides:
    records, results = [], []
    for image in range(1, 3 if quick else 101):
        record, found = scene(image)
        records.append(record)
        results += found
    categories = tuple(range(1, _CLASSES + 1))
    dataset = CocoDataset(Path("scenes"), records, categories, tuple(f"class {number}" for number in categories))
    content = as_json(dataset)

    def ours() -> dict[str, float]:
        return {k: v for kind in KINDS for k, v in score_results(dataset, results, kind, EvaluationConfig()).items()}

    def theirs() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = content
            truth.createIndex()
            metrics = {}
            for kind in KINDS:
                # loadRes writes into the entries.
                evaluator = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
                evaluator.evaluate()
                evaluator.accumulate()
                evaluator.summarize()
                metrics |= {f"{kind}/AP": evaluator.stats[0], f"{kind}/AP50": evaluator.stats[1]}
            return metrics

    found, expected = ours(), theirs()
    apart = max(abs(found[name] - value) for name, value in expected.items())
    row = Difference("pycocotools", "evaluation", "metrics", apart, 1e-9, "absolute")
    require([row])
    assert 0.05 < expected["segm/AP"] < 0.95, f"nothing to tell apart: {expected}"
    return Sides(ours, {"pycocotools": theirs})


def scene(image: int) -> tuple[Record, list[dict[str, Any]]]:
    """Annotations and results of one image."""
    rng = np.random.default_rng(image)
    centres, radii = random_ellipses(rng, _OBJECTS)
    classes = rng.integers(0, _CLASSES, _OBJECTS)
    rles, boxes = encode(centres, radii)
    record = Record(
        image_id=image,
        path=f"{image}.jpg",
        height=_HEIGHT,
        width=_WIDTH,
        boxes=boxes,
        classes=classes,
        segmentations=rles,
        iscrowd=np.zeros(_OBJECTS, bool),
        areas=np.array([coco_mask.area(rle) for rle in rles], np.float64),
        annotation_ids=_OBJECTS * image + np.arange(_OBJECTS),
    )
    other_centres, other_radii = random_ellipses(rng, _RESULTS - _OBJECTS)
    centres = np.concatenate([centres + rng.normal(0, 0.1, centres.shape) * radii, other_centres])
    rles, boxes = encode(centres.clip(1, [_WIDTH - 1, _HEIGHT - 1]), np.concatenate([radii, other_radii]))
    classes = np.concatenate([classes, rng.choice(classes, _RESULTS - _OBJECTS)])
    scores = np.concatenate([rng.uniform(0.3, 1, _OBJECTS), rng.uniform(0, 0.7, _RESULTS - _OBJECTS)])
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    results = [
        {
            "image_id": image,
            "category_id": int(classes[row]) + 1,
            "bbox": sides[row].tolist(),
            "score": float(scores[row]),
            "segmentation": rles[row],
        }
        for row in range(_RESULTS)
    ]
    return record, results


def random_ellipses(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres and radii (x, y)."""
    return rng.uniform([20, 20], [_WIDTH - 20, _HEIGHT - 20], (count, 2)), np.exp(rng.uniform(2, 5, (count, 2)))


def encode(centres: np.ndarray, radii: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """RLEs, and boxes clipped to the image."""
    outlines = [ellipse(centre, radius) for centre, radius in zip(centres, radii, strict=True)]
    rles = [to_rle([outline], _HEIGHT, _WIDTH) for outline in outlines]
    limit = np.array([_WIDTH, _HEIGHT] * 2)
    return rles, np.concatenate([centres - radii, centres + radii], axis=1).clip(0, limit).astype(np.float32)


def ellipse(centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The outline of an ellipse: 24 corners x, y, x, y, ...; `centre` and `radius` are (x, y)."""
    angle = np.arange(24) * (2 * np.pi / 24)
    return (centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)).ravel()


def as_json(dataset: CocoDataset) -> dict[str, Any]:
    """The dataset as COCO's annotation file has it."""
    annotations = []
    for record in dataset.records:
        for row, rle in enumerate(record.segmentations):
            x1, y1, x2, y2 = record.boxes[row].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": int(record.classes[row]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(record.areas[row]),
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )
    images = [{"id": record.image_id, "height": _HEIGHT, "width": _WIDTH} for record in dataset.records]
    return {"images": images, "annotations": annotations, "categories": [{"id": k} for k in dataset.categories]}
