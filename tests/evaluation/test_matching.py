"""The fast matching against pycocotools' own."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn_jax.evaluation.matching import SparseCOCOeval

IMAGES, CLASSES = 6, 3


def random_instances(rng: np.random.Generator, count: int) -> list[dict]:
    # Few positions and sizes: equal boxes, equal IoUs and equal scores are common.
    corners, sides = rng.integers(0, 12, (count, 2)) * 10, rng.choice([20, 30, 60, 110], (count, 2))
    return [
        {
            "id": i + 1,
            "image_id": int(rng.integers(IMAGES)) + 1,
            "category_id": int(rng.integers(CLASSES)) + 1,
            "bbox": [*corners[i].tolist(), *sides[i].tolist()],
            "area": float(sides[i].prod()),
            "iscrowd": 0,
        }
        for i in range(count)
    ]


def indexed(annotations: list[dict]) -> COCO:
    coco = COCO()
    # A class and an image have neither truth nor detections.
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(IMAGES + 1)],
        "categories": [{"id": k + 1} for k in range(CLASSES + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


@pytest.mark.parametrize("seed", range(4))
def test_same_results_as_pycocotools(seed) -> None:
    rng = np.random.default_rng(seed)
    truth, detections = random_instances(rng, 90), random_instances(rng, 250)
    for annotation in truth:
        annotation["iscrowd"] = int(rng.random() < 0.15)
    for detection, near in zip(detections, rng.integers(0, len(truth), len(detections)), strict=True):
        if rng.random() < 0.6:
            shift = rng.choice([0, 0, 2, 5], 2).tolist()
            detection |= {key: truth[near][key] for key in ("image_id", "category_id", "area")}
            box = truth[near]["bbox"]
            detection["bbox"] = [box[0] + shift[0], box[1] + shift[1], *box[2:]]
        detection["score"] = float(rng.integers(1, 20)) / 20
    evaluations = []
    for evaluator_class in (COCOeval, SparseCOCOeval):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = evaluator_class(indexed(truth), indexed(detections), "bbox")
            evaluator.params.maxDets = [1, 3, 15]
            evaluator.evaluate()
            evaluator.accumulate()
        evaluations.append(evaluator.eval)
    ours, theirs = evaluations[1], evaluations[0]
    assert 0 < np.mean(theirs["precision"][theirs["precision"] > -1]) < 1
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
