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
    min_keypoint_score: float = 0.05,
) -> list[Path]:
    """Writes `count` images, spread evenly over the dataset, with their ground truth beside their detections.

    `results` are COCO results with or without masks and keypoints; those that score less than `min_score`, and single
    keypoints of less than `min_keypoint_score`, are not drawn. Returns the files, named after the images.
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
        shown = [result for result in by_image[record.image_id] if result["score"] >= min_score]
        shown.sort(key=lambda result: -result["score"])
        image = read_image(record.path)
        truth = _draw_truth(image, dataset, record)
        found = _draw_results(image, dataset, shown, min_keypoint_score)
        captions = f"ground truth: {len(record.boxes)}", f"detected with score {min_score:g} or more: {len(shown)}"
        Image.fromarray(side_by_side((truth, found), captions)).save(path)
        paths.append(path)
    return paths


def _draw_truth(
    image: UInt8[np.ndarray, "H W 3"], dataset: CocoDataset, record: Record
) -> UInt8[np.ndarray, "canvas_H canvas_W 3"]:
    return draw_instances(
        image,
        record.boxes,
        record.classes,
        record.segmentations,
        None,
        dataset.class_names,
        crowds=record.iscrowd,
        keypoints=record.keypoints,
        skeleton=dataset.skeleton,
    )


def _draw_results(
    image: UInt8[np.ndarray, "H W 3"],
    dataset: CocoDataset,
    results: Sequence[dict[str, Any]],
    min_keypoint_score: float,
) -> UInt8[np.ndarray, "canvas_H canvas_W 3"]:
    corners = np.array([r["bbox"] for r in results], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    keypoints = None
    if results and all("keypoints" in r for r in results):
        keypoints = np.array([r["keypoints"] for r in results], np.float32).reshape(len(results), -1, 3)
        keypoints[..., :2] += 0.5
        keypoints[..., 2] = np.where(keypoints[..., 2] >= min_keypoint_score, 2, 0)
    return draw_instances(
        image,
        corners,
        np.array([dataset.categories.index(r["category_id"]) for r in results], np.int32),
        [r["segmentation"] for r in results] if all("segmentation" in r for r in results) else None,
        np.array([r["score"] for r in results], np.float32),
        dataset.class_names,
        keypoints=keypoints,
        # Another dataset's skeleton would join what it does not mean.
        skeleton=dataset.skeleton
        if keypoints is not None and keypoints.shape[1] == len(dataset.keypoint_names)
        else (),
    )
