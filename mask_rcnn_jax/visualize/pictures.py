"""Pictures of ground truth beside detections, from a dataset and a COCO results file's entries."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mask_rcnn_jax.data import CocoDataset, DataConfig, Record
from mask_rcnn_jax.data.augment.transforms import open_image
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.visualize.draw import DRAWN_KEYPOINT, Instances, draw_instances, side_by_side

_FOLDER = "pictures"
_NAME_LENGTH = 60  # characters of an image's name in that of its picture


def picture_files(dataset: CocoDataset, root: Path, count: int) -> dict[Path, Record]:
    """The files that `write_pictures` writes below `root`, and the image of each."""
    chosen = np.unique(np.linspace(0, len(dataset.records) - 1, min(count, len(dataset.records))).round().astype(int))
    records = [dataset.records[i] for i in chosen.tolist()]
    # The id as well: images in different folders may share a name.
    return {
        root / _FOLDER / f"{record.image_id}_{Path(record.path).stem[:_NAME_LENGTH]}.png": record for record in records
    }


def write_pictures(
    dataset: CocoDataset,
    results: Sequence[dict[str, Any]],
    outputs: OutputFolder,
    count: int = 8,
    min_score: float = 0.5,
    max_pixels: int = DataConfig.max_pixels,
) -> list[Path]:
    """Writes `count` images, spread evenly over the dataset, with their ground truth beside their detections, into the
    folder `pictures` of `outputs`; pictures of an earlier call that are not among them are removed.

    `results` are COCO results with or without masks and keypoints; those that score less than `min_score`, and single
    keypoints of less than .05, are not drawn. Returns the files, named after the images. Raises UserError for an image
    that cannot be read or has more than `max_pixels`, and as `outputs` does.
    """
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    files = picture_files(dataset, outputs.root, count)
    for path, record in files.items():
        shown = [result for result in by_image[record.image_id] if result["score"] >= min_score]
        shown.sort(key=lambda result: -result["score"])
        image = np.asarray(open_image(record.path, max_pixels, record.open))
        truth = _draw_truth(image, dataset, record)
        found = _draw_results(image, dataset, shown)
        captions = f"ground truth: {len(record.boxes)}", f"detected with score {min_score:g} or more: {len(shown)}"
        with outputs.replacing(path) as part:
            Image.fromarray(side_by_side((truth, found), captions)).save(part, "PNG")
    outputs.remove_own(set((outputs.root / _FOLDER).glob("*.png")) - files.keys())
    return list(files)


def _draw_truth(
    image: UInt8[np.ndarray, "H W 3"], dataset: CocoDataset, record: Record
) -> UInt8[np.ndarray, "canvas_H canvas_W 3"]:
    return draw_instances(
        image,
        Instances(
            record.boxes,
            record.classes,
            record.segmentations,
            None,
            dataset.class_names,
            crowds=record.iscrowd,
            keypoints=record.keypoints,
            skeleton=dataset.skeleton,
        ),
    )


def _draw_results(
    image: UInt8[np.ndarray, "H W 3"], dataset: CocoDataset, results: Sequence[dict[str, Any]]
) -> UInt8[np.ndarray, "canvas_H canvas_W 3"]:
    corners = np.array([r["bbox"] for r in results], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    keypoints = None
    if results and all("keypoints" in r for r in results):
        keypoints = np.array([r["keypoints"] for r in results], np.float32).reshape(len(results), -1, 3)
        keypoints[..., :2] += 0.5
        keypoints[..., 2] = np.where(keypoints[..., 2] >= DRAWN_KEYPOINT, 2, 0)
    return draw_instances(
        image,
        Instances(
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
        ),
    )
