"""Golden values of pycocotools, and what AP must be in cases that can be worked out."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.data import CocoConfig, CocoDataset, load_coco
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, evaluate, score_results
from mask_rcnn_jax.inference import Detections
from tests.evaluation.scenes import SIDE, dataset_of, detections_in, random_boxes, results_of

CONFIG = EvaluationConfig()
# The order in which COCOeval prints its summary.
SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def val2014(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """100 images of COCO val2014; the image files are not needed, but must be there."""
    root = tmp_path_factory.mktemp("val2014")
    (root / "annotations").mkdir()
    (root / "val").mkdir()
    source = shared / "data" / "cocoeval_fixtures" / "instances_val2014_100.json"
    shutil.copy(source, root / "annotations" / "instances_val.json")
    for image in json.loads(source.read_text())["images"]:
        (root / "val" / image["file_name"]).touch()
    return load_coco(CocoConfig(str(root)), "val")


def golden(shared: Path, kind: str) -> dict[str, float]:
    """What COCO's own evaluation printed."""
    text = (shared / "data" / "cocoeval_fixtures" / "val2014_fake_eval_res.txt").read_text()
    section = text.split(f"type={kind}")[1].split("type=")[0]
    values = [float(value) for value in re.findall(r"= (-?\d\.\d+)$", section, re.MULTILINE)]
    return {f"{kind}/{name}": value for name, value in zip(SUMMARY, values, strict=True)}


def fake_results(shared: Path, kind: str) -> list[dict]:
    return json.loads(
        (shared / "data" / "cocoeval_fixtures" / f"instances_val2014_fake{kind}100_results.json").read_text()
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_golden_values_of_coco(val2014, shared, kind) -> None:
    metrics = score_results(val2014, fake_results(shared, kind), kind, CONFIG)
    expected = golden(shared, kind)
    assert expected[f"{kind}/AP"] == {"bbox": 0.505, "segm": 0.320}[kind]
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=5.001e-4), name


def test_golden_values_through_detections(val2014, shared) -> None:
    results = fake_results(shared, "bbox")
    predictions = []
    for record in val2014.records:
        mine = [r for r in results if r["image_id"] == record.image_id]
        boxes = np.array([r["bbox"] for r in mine], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([val2014.categories.index(r["category_id"]) for r in mine], np.int32)
        scores = np.array([r["score"] for r in mine], np.float32)
        found = Detections(record.height, record.width, boxes, scores, classes, val2014.class_names, None)
        predictions.append((record.image_id, found))
    metrics, _ = evaluate(val2014, predictions, CONFIG)
    assert not any(name.startswith("segm/") for name in metrics)
    for name, value in golden(shared, "bbox").items():
        assert metrics[name] == pytest.approx(value, abs=5.001e-4), name


def test_perfect_detections() -> None:
    rng = np.random.default_rng(0)
    dataset = dataset_of(
        [random_boxes(rng, 6), random_boxes(rng, 9), []], [[0, 1, 0, 1, 0, 1], [1] * 9, []], num_classes=3
    )
    metrics, results = evaluate(dataset, [detections_in(record) for record in dataset.records], CONFIG)
    for kind in ("bbox", "segm"):
        assert metrics[f"{kind}/AP"] == pytest.approx(1)
        assert metrics[f"{kind}/AR100"] == pytest.approx(1)
        assert metrics[f"{kind}/AP/class 1"] == pytest.approx(1)
        # Neither class 2 nor large instances have ground truth.
        assert math.isnan(metrics[f"{kind}/AP/class 2"])
        assert math.isnan(metrics[f"{kind}/APl"])
    assert len(results) == 15
    assert {result["category_id"] for result in results} == {3, 5}
    assert json.loads(json.dumps(results)) == results


def test_shifted_detections_pass_the_thresholds_below_their_iou() -> None:
    dataset = dataset_of([[[0, 0, 100, 100]]])
    record = dataset.records[0]
    # IoU 80 / 120: above .5, .55, .6, .65.
    metrics, _ = evaluate(dataset, [detections_in(record, [[20, 0, 120, 100]])], CONFIG)
    assert metrics["bbox/AP"] == pytest.approx(0.4)
    assert metrics["bbox/AP50"] == pytest.approx(1)
    assert metrics["bbox/AP75"] == 0
    assert metrics["segm/AP"] == pytest.approx(0.4)


def test_nothing_detected() -> None:
    dataset = dataset_of([[[0, 0, 100, 100]], [[5, 5, 20, 20]]], num_classes=2)
    nothing = [detections_in(record, []) for record in dataset.records]
    for predictions in (nothing, []):
        metrics, results = evaluate(dataset, predictions, CONFIG)
        assert results == []
        for kind in ("bbox", "segm"):
            assert metrics[f"{kind}/AP"] == metrics[f"{kind}/AR100"] == metrics[f"{kind}/APs"] == 0
            assert math.isnan(metrics[f"{kind}/AP/class 1"])


def test_dataset_without_annotations_has_no_ap() -> None:
    dataset = dataset_of([[], []])
    metrics, _ = evaluate(dataset, [detections_in(dataset.records[0], [[0, 0, 9, 9]])], CONFIG)
    assert all(math.isnan(value) for value in metrics.values())


def test_ap_counts_detections_up_to_the_last_of_max_detections() -> None:
    grid = [[8.0 * x, 8.0 * y, 8.0 * x + 6, 8.0 * y + 6] for x in range(15) for y in range(10)]
    dataset = dataset_of([grid])
    detections = detections_in(dataset.records[0], masks=False)
    hundred, _ = evaluate(dataset, [detections], EvaluationConfig((1, 10, 100)))
    all_of_them, _ = evaluate(dataset, [detections], EvaluationConfig((100, 150)))
    # 100 of 150: precision 1 at the recalls 0, .01, ..., .66.
    assert hundred["bbox/AP"] == pytest.approx(67 / 101)
    assert hundred["bbox/APs"] == pytest.approx(67 / 101)
    assert hundred["bbox/AR10"] == pytest.approx(10 / 150)
    assert all_of_them["bbox/AP"] == pytest.approx(1)
    assert all_of_them["bbox/APs"] == pytest.approx(1)
    assert all_of_them["bbox/ARs"] == pytest.approx(1)
    assert all_of_them["bbox/AR100"] == pytest.approx(100 / 150)
    assert "bbox/AR10" not in all_of_them


def test_masks_decide_which_detections_are_small() -> None:
    dataset = dataset_of([[[0, 0, 20, 20]]])
    right = results_of(dataset, detections_in(dataset.records[0], scores=[0.5]))
    # A better scored mistake, whose mask is small in a box that is large.
    wrong = results_of(dataset, detections_in(dataset.records[0], [[100, 100, 120, 120]], [0.9]))
    wrong[0]["bbox"] = [100, 100, 120, 120]
    assert score_results(dataset, right + wrong, "segm", CONFIG)["segm/APs"] == pytest.approx(0.5)
    assert score_results(dataset, right + wrong, "bbox", CONFIG)["bbox/APs"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("segm", {"segmentation": {"size": [SIDE, SIDE], "counts": "~~garbage"}}, "not a compressed RLE"),
        ("segm", {"segmentation": {"size": [1, 1], "counts": "1"}}, "its size is 1 x 1"),
        ("segm", {"segmentation": [[0, 0, 9, 0, 9, 9]]}, "not an object of size and counts"),
        ("bbox", {"bbox": None}, "bbox null"),
        ("bbox", {"score": "0.5 or so"}, "score '0.5 or so'"),
        ("bbox", {"image_id": "12"}, "unknown image_id '12'"),
        ("bbox", {"category_id": {}}, r"unknown category_id \{\}"),
        ("bbox", {"bbox": [0, 0, 9]}, "not four numbers"),
    ],
)
def test_foreign_results_that_cannot_be_evaluated_are_named(kind, changes, message) -> None:
    dataset = dataset_of([[[0, 0, 20, 20]]])
    (result,) = results_of(dataset, detections_in(dataset.records[0], scores=[0.5]))
    with pytest.raises(UserError, match=rf"results\[1\] .*{message}"):
        score_results(dataset, [result, result | changes], kind, CONFIG)


def test_annotated_areas_decide_which_instances_are_small() -> None:
    dataset = dataset_of([[[0, 0, 100, 100]]], areas=np.array([1000.0]))
    metrics, _ = evaluate(dataset, [detections_in(dataset.records[0])], CONFIG)
    assert metrics["segm/APs"] == pytest.approx(1)
    assert math.isnan(metrics["segm/APl"])


def test_detections_in_a_crowd_are_not_counted_against() -> None:
    boxes = [[0, 0, 40, 40], [100, 100, SIDE, SIDE]]
    inside = [[0, 0, 40, 40], [110, 110, 140, 140], [120, 120, 170, 170]]
    found = {}
    for crowd in (True, False):
        dataset = dataset_of([boxes], iscrowd=np.array([False, crowd]))
        found[crowd], _ = evaluate(dataset, [detections_in(dataset.records[0], inside, [0.9, 0.95, 0.8])], CONFIG)
    for kind in ("bbox", "segm"):
        assert found[True][f"{kind}/AP"] == pytest.approx(1)
        # Two instances, of which one is found after a mistake: precision 1/2 at the recalls 0, .01, ..., .5.
        assert found[False][f"{kind}/AP"] == pytest.approx(0.5 * 51 / 101)


def test_order_of_predictions_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    dataset = dataset_of([random_boxes(rng, 5) for _ in range(4)])
    predictions = [detections_in(r, r.boxes + rng.normal(0, 2, (5, 4))) for r in dataset.records]
    predictions = [
        (image_id, replace(found, scores=np.sort(rng.random(5).astype(np.float32))[::-1]))
        for image_id, found in predictions
    ]
    forward, _ = evaluate(dataset, predictions, CONFIG)
    backward, _ = evaluate(dataset, predictions[::-1], CONFIG)
    assert 0 < forward["segm/AP"] < 1
    assert forward == pytest.approx(backward, nan_ok=True)


def test_nothing_is_printed(capsys) -> None:
    evaluate(dataset_of([[[0, 0, 9, 9]]]), [], CONFIG)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", [(), (0, 10), (10, 1), (1, 1)])
def test_max_detections_are_checked(wrong) -> None:
    with pytest.raises((UserError, ValueError), match="max_detections"):
        EvaluationConfig(max_detections=wrong)
