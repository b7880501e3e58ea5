"""Pictures of ground truth beside detections, from a dataset and a COCO results file's entries."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mask_rcnn_jax.data import CocoDataset, Record, read_image
from mask_rcnn_jax.visualize.draw import draw_instances, side_by_side


def write_pictures(
    dataset: CocoDataset,
    results: Sequence[dict[str, Any]],
    directory: str | Path,
    count: int = 8,
    min_score: float = 0.5,
) -> list[Path]:
    """Writes `count` images, spread evenly over the dataset, with their ground truth beside their detections.

    `results` are COCO results with or without masks; those that score less than `min_score` are not drawn. Returns the
    files, named after the images.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    chosen = np.unique(np.linspace(0, len(dataset.records) - 1, min(count, len(dataset.records))).round().astype(int))
    paths = []
    for record in (dataset.records[i] for i in chosen.tolist()):
        # The id as well: images in different folders may share a name.
        path = directory / f"{record.image_id}_{Path(record.path).stem}.png"
        Image.fromarray(_comparison(dataset, record, by_image[record.image_id], min_score)).save(path)
        paths.append(path)
    return paths


def _comparison(
    dataset: CocoDataset, record: Record, results: Sequence[dict[str, Any]], min_score: float
) -> UInt8[np.ndarray, "H W 3"]:
    image, names = read_image(record.path), dataset.class_names
    truth = draw_instances(
        image, record.boxes, record.classes, record.segmentations, None, names, crowds=record.iscrowd
    )
    shown = sorted((r for r in results if r["score"] >= min_score), key=lambda r: -r["score"])
    corners = np.array([r["bbox"] for r in shown], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    found = draw_instances(
        image,
        corners,
        np.array([dataset.categories.index(r["category_id"]) for r in shown], np.int32),
        [r["segmentation"] for r in shown] if all("segmentation" in r for r in shown) else None,
        np.array([r["score"] for r in shown], np.float32),
        names,
    )
    captions = (f"ground truth: {len(record.boxes)}", f"detected with score {min_score:g} or more: {len(shown)}")
    return side_by_side((truth, found), captions)
