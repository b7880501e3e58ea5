"""Recall of proposals, beside COCO's own code."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn_jax.data import BoxProposals
from mask_rcnn_jax.evaluation.recall import proposal_recall
from tests.evaluation.scenes import SIDE, dataset_of


def coco_recall(pairs, limits):
    """Recall at .5 and the average recall by COCOeval without classes."""
    images, annotations, results = [], [], []
    for record, proposals in pairs:
        images.append({"id": record.image_id, "height": SIDE, "width": SIDE})
        for box, crowd in zip(record.boxes.tolist(), record.iscrowd.tolist(), strict=True):
            x1, y1, x2, y2 = box
            entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}
            annotations.append(entry | {"id": len(annotations) + 1, "image_id": record.image_id, "category_id": 1})
        for (x1, y1, x2, y2), score in zip(proposals.boxes.tolist(), proposals.scores.tolist(), strict=True):
            entry = {"image_id": record.image_id, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            results.append(entry | {"score": score})
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.params.useCats, evaluation.params.maxDets = 0, list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0]  # of all sizes
    return recall[0], recall.mean(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_recall_is_cocos(seed, capsys):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(6):
        corners = rng.uniform(0, 150, (rng.integers(1, 8), 2))
        boxes = np.hstack([corners, corners + rng.uniform(20, 100, corners.shape)])
        near = np.repeat(boxes, 4, axis=0) + rng.normal(0, 8, (4 * len(boxes), 4))
        order = rng.permutation(len(near))
        crowd = rng.random(len(boxes)) < 0.2
        (record,) = dataset_of([boxes.tolist()], iscrowd=crowd).records
        scores = -np.arange(len(near), dtype=np.float32)
        pairs.append((replace(record, image_id=len(pairs) + 1), BoxProposals(near[order].astype(np.float32), scores)))
    limits = (1, 5, 1000)
    found, expected = proposal_recall(pairs, limits), coco_recall(pairs, limits)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert 0 < found[1][0] < found[1][1] < found[1][2] < found[0][2] <= 1


def test_of_no_instances_there_is_no_recall():
    (record,) = dataset_of([[]]).records
    found = BoxProposals(np.array([[0, 0, 5, 5]], np.float32), np.zeros(1, np.float32))
    assert np.isnan(proposal_recall([(record, found)], (10,))).all()
