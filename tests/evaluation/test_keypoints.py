"""Keypoint AP and AR: what pycocotools makes of the same files, and cases that can be worked out."""

import contextlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn_jax.data import CocoConfig, CocoDataset, Record, load_coco
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, evaluate, format_table, score_results
from mask_rcnn_jax.inference import Detections
from tests.evaluation.scenes import dataset_of, detections_in, results_of

CONFIG = EvaluationConfig()
# The order in which COCOeval prints its summary.
SUMMARY = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
FIXTURES = Path("data") / "cocoeval_fixtures"


def of_pycocotools(annotation_file: Path, results: list[dict]) -> dict[str, float]:
    """What COCOeval prints for a results file of keypoints alone, which is what COCO's server takes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        names = ("image_id", "category_id", "keypoints", "score")
        found = truth.loadRes(json.loads(json.dumps([{name: result[name] for name in names} for result in results])))
        evaluator = COCOeval(truth, found, "keypoints")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {f"keypoints/{name}": float(value) for name, value in zip(SUMMARY, evaluator.stats, strict=True)}


def found_in(record: Record, keypoints: np.ndarray, scores: np.ndarray) -> tuple[int, Detections]:
    low, high = keypoints[..., :2].min(axis=1), keypoints[..., :2].max(axis=1)
    boxes, classes = np.concatenate([low, high], axis=1).astype(np.float32), np.zeros(len(keypoints), np.int32)
    size = record.height, record.width
    return record.image_id, Detections(
        *size, boxes, scores.astype(np.float32), classes, (), None, keypoints.astype(np.float32)
    )


def truth_as_detections(dataset: CocoDataset) -> list[tuple[int, Detections]]:
    found = []
    for record in dataset.records:
        assert record.keypoints is not None
        chosen = (record.keypoints[..., 2] > 0).any(axis=1) & ~record.iscrowd
        found.append(found_in(record, record.keypoints[chosen], np.linspace(0.9, 0.5, chosen.sum())))
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_same_values_as_pycocotools(shared: Path, split: str) -> None:
    """Moved, doubled, missing and invented persons, on real annotations with crowds and persons without keypoints."""
    dataset, rng = load_coco(CocoConfig(str(shared / "data" / "coco_person_kp")), split), np.random.default_rng(0)
    predictions = []
    for record in dataset.records:
        assert record.keypoints is not None
        chosen = rng.choice(len(record.boxes), rng.integers(0, 2 * len(record.boxes) + 1))
        keypoints = record.keypoints[chosen].copy()
        keypoints[..., :2] += rng.normal(0, 2, (len(chosen), 17, 2)) * rng.random((len(chosen), 1, 1))
        invented = rng.uniform(0, 320, (int(rng.integers(0, 30)) if rng.random() < 0.1 else 1, 17, 3))
        scores = np.concatenate([rng.random(len(chosen)), 0.7 * rng.random(len(invented))])
        predictions.append(found_in(record, np.concatenate([keypoints, invented]), scores))
    metrics, results = evaluate(dataset, predictions, CONFIG)
    expected = of_pycocotools(dataset.annotation_file, results)
    assert 0.1 < expected["keypoints/AP"] < 0.9
    assert max(np.bincount(np.unique([r["image_id"] for r in results], return_inverse=True)[1])) > 20
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert metrics["keypoints/AP/person"] == metrics["keypoints/AP"]


def test_same_values_as_pycocotools_for_cocos_own_results_file(shared: Path, tmp_path: Path) -> None:
    """COCO's fake keypoint results; their ground truth is not published with them, so these moved a little are it."""
    results = json.loads((shared / FIXTURES / "person_keypoints_val2014_fakekeypoints100_results.json").read_text())
    rng, images, annotations = np.random.default_rng(0), {}, []
    for number, result in enumerate(results, 1):
        keypoints = np.array(result["keypoints"], np.float64).reshape(17, 3)
        keypoints[:, :2] += rng.integers(-6, 7, (17, 2))
        keypoints[:, 2] = rng.integers(0, 3, 17) * (number % 9 > 0)
        x, y = keypoints[:, :2].min(axis=0).clip(0).tolist()
        width, height = np.ptp(keypoints[:, :2], axis=0).tolist()
        images[result["image_id"]] = {"id": result["image_id"], "file_name": "a.jpg", "width": 1000, "height": 1000}
        annotations.append(
            {"id": number, "image_id": result["image_id"], "category_id": 1, "iscrowd": int(number % 11 == 0)}
            | {"bbox": [x, y, width, height], "area": width * height, "segmentation": [[x, y, x + 9, y, x, y + 9]]}
            | {"keypoints": keypoints.ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
        )
    person = json.loads((shared / "data/coco_person_kp/annotations/instances_val.json").read_text())["categories"]
    for folder in ("annotations", "val"):
        (tmp_path / folder).mkdir()
    (tmp_path / "val" / "a.jpg").touch()
    content = {"images": list(images.values()), "annotations": annotations, "categories": person}
    (tmp_path / "annotations" / "person_keypoints_val.json").write_text(json.dumps(content))

    config = CocoConfig(str(tmp_path), annotation_file="person_keypoints_{split}.json")
    dataset = load_coco(config, "val")
    assert not dataset.problems
    metrics = score_results(dataset, results, "keypoints", CONFIG)
    expected = of_pycocotools(dataset.annotation_file, results)
    assert 0.1 < expected["keypoints/AP"] < 0.9
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name


def test_ground_truth_as_detections_is_perfect(shared: Path) -> None:
    dataset = load_coco(CocoConfig(str(shared / "data" / "coco_person_kp")), "val")
    metrics, results = evaluate(dataset, truth_as_detections(dataset), CONFIG)
    for name in SUMMARY:
        assert metrics[f"keypoints/{name}"] == pytest.approx(1), name
    assert not any(name.startswith("segm/") for name in metrics)
    assert json.loads(json.dumps(results)) == results
    # As annotated: in COCO's pixel indices.
    content = json.loads(dataset.annotation_file.read_text())
    annotated = {tuple(a["keypoints"]) for a in content["annotations"] if a["num_keypoints"] == 17}
    written = {tuple(result["keypoints"]) for result in results if all(result["keypoints"][2::3])}
    assert written == annotated != set()


def scene(keypoints: list[list[list[float]]], **changes) -> CocoDataset:
    """An image with an instance of 100 x 100 px for each list of two keypoints."""
    boxes = [[0.0, 0.0, 100.0, 100.0]] * len(keypoints)
    fields = {"keypoints": np.array(keypoints, np.float32).reshape(-1, 2, 3)} | changes
    return replace(dataset_of([boxes], **fields), keypoint_names=("head", "tail"))


def test_similarity_follows_its_formula() -> None:
    """OKS = mean of exp(-d^2 / (2 area (2 sigma)^2)) over the annotated keypoints."""
    dataset = scene([[[20, 20, 2], [0, 0, 0]]])
    config = EvaluationConfig(keypoint_sigmas=(0.05, 0.1))
    for similarity, passed in ((0.52, 1), (0.77, 6), (0.96, 10)):
        distance = math.sqrt(-math.log(similarity) * 2 * 100**2 * (2 * 0.05) ** 2)
        keypoints = np.array([[[20 + distance, 20, 1], [77, 88, 1]]])
        metrics, _ = evaluate(dataset, [found_in(dataset.records[0], keypoints, np.ones(1))], config)
        assert metrics["keypoints/AP"] == pytest.approx(passed / 10)
        assert metrics["keypoints/AP50"] == pytest.approx(1)
        assert math.isnan(metrics["keypoints/APm"])


def test_instances_without_keypoints_and_crowds_are_not_counted_against() -> None:
    person, nothing = [[20, 20, 2], [70, 70, 2]], [[0, 0, 0], [0, 0, 0]]
    config = EvaluationConfig(keypoint_sigmas=(0.05, 0.05))
    better = np.array([[[40, 40, 1], [60, 60, 1]], [[20, 20, 1], [70, 70, 1]]])
    for ignored, crowd, ap in ((nothing, False, 1), (better[0].tolist(), True, 1), (person, False, 0.5 * 51 / 101)):
        dataset = scene([person, ignored], iscrowd=np.array([False, crowd]))
        metrics, _ = evaluate(dataset, [found_in(dataset.records[0], better, np.array([0.9, 0.8]))], config)
        assert metrics["keypoints/AP"] == pytest.approx(ap)


def test_other_keypoints_need_their_own_sigmas() -> None:
    dataset = scene([[[20, 20, 2], [70, 70, 2]]])
    found = truth_as_detections(dataset)
    with pytest.raises(UserError, match=r"names 2 keypoints but there are 17 sigmas; set evaluation\.keypoint_sigmas"):
        evaluate(dataset, found, CONFIG)
    metrics, _ = evaluate(dataset, found, EvaluationConfig(keypoint_sigmas=(0.05, 0.05)))
    assert metrics["keypoints/AP"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"keypoint_sigmas\[1\] must be above 0"):
        EvaluationConfig(keypoint_sigmas=(0.05, 0.0))


def test_another_number_of_keypoints_than_the_datasets_is_refused() -> None:
    dataset = scene([[[20, 20, 2], [70, 70, 2]]])
    found = found_in(dataset.records[0], np.ones((1, 3, 3)), np.ones(1))
    with pytest.raises(UserError, match="names 2 keypoints but the detections have 3"):
        evaluate(dataset, [found], EvaluationConfig(keypoint_sigmas=(0.05, 0.05)))


def test_keypoints_are_evaluated_where_both_have_them() -> None:
    dataset = scene([[[20, 20, 2], [70, 70, 2]]])
    boxes, _ = evaluate(dataset, [detections_in(dataset.records[0])], CONFIG)
    assert not any(name.startswith("keypoints/") for name in boxes)
    plain = dataset_of([[[0, 0, 9, 9]]])
    metrics, results = evaluate(plain, [found_in(plain.records[0], np.ones((1, 5, 3)), np.ones(1))], CONFIG)
    assert not any(name.startswith("keypoints/") for name in metrics)
    assert results[0]["keypoints"] == [0.5, 0.5, 1] * 5
    assert "keypoints" not in results_of(plain, detections_in(plain.records[0]))[0]


def test_nothing_detected() -> None:
    dataset = scene([[[20, 20, 2], [70, 70, 2]]])
    image_id, found = found_in(dataset.records[0], np.ones((1, 2, 3)), np.ones(1))
    nothing = image_id, found.take(np.zeros(0, int))
    metrics, _ = evaluate(dataset, [nothing], EvaluationConfig(keypoint_sigmas=(0.05, 0.05)))
    assert metrics["keypoints/AP"] == metrics["keypoints/AR"] == 0


def test_the_table_has_a_line_of_keypoints_with_columns_of_its_own() -> None:
    metrics = {"bbox/AP": 0.5, "bbox/APs": math.nan, "bbox/AP/a": 0.5, "bbox/AP/b": 0.25}
    metrics |= {"keypoints/AP": 0.125, "keypoints/AR": 0.75, "keypoints/AP/a": 0.125, "keypoints/AP/b": math.nan}
    assert [line.split() for line in format_table(metrics).splitlines()] == [
        ["AP", "APs"],
        ["bbox", "0.500", "-"],
        [],
        ["AP", "AR"],
        ["keypoints", "0.125", "0.750"],
        [],
        ["AP", "by", "class", "bbox", "keypoints"] * 2,
        ["a", "0.500", "0.125", "b", "0.250", "-"],
    ]
