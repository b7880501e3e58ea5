"""LVIS metrics: the numbers of the `lvis` package on a sample of LVIS, and what federated annotations leave open."""

import json
import sys
from collections import Counter
from types import ModuleType

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import LvisConfig, to_rle
from mask_rcnn_jax.evaluation import EvaluationConfig, evaluate, score_results
from mask_rcnn_jax.inference import Detections
from tests.evaluation.scenes import full_masks

CONFIG = EvaluationConfig()

# AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl of `made_up_results` of the sample, by lvis 0.5.3.
GOLDEN = {
    "bbox": (
        0.406791,
        0.538998,
        0.434064,
        0.316010,
        0.507335,
        0.670216,
        0.000000,
        0.468085,
        0.397784,
        0.534767,
        0.376927,
        0.619859,
        0.742535,
    ),
    "segm": (
        0.254883,
        0.428277,
        0.234588,
        0.113258,
        0.328132,
        0.583685,
        0.000000,
        0.273118,
        0.253045,
        0.348584,
        0.156265,
        0.429077,
        0.647953,
    ),
}


@pytest.fixture
def sample(shared, tmp_path):
    """The sample as a source, with empty files for its images, which evaluation does not read."""
    content = json.loads((shared / "data" / "cocoeval_fixtures" / "lvis_val_100.json").read_text())
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
    for image in content["images"]:
        path = tmp_path.joinpath(*image["coco_url"].split("/")[-2:])
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return LvisConfig(str(tmp_path)).load("val")


def made_up_results(dataset):
    """Annotations moved about, doubled and left out, and detections of classes that are absent, unknown, or not all
    annotated; more than 300 in one image.
    """
    rng, results = np.random.default_rng(0), []
    for number, record in enumerate(dataset.records):
        height, width = record.height, record.width
        for box, k, segmentation in zip(record.boxes, record.classes, record.segmentations, strict=True):
            bitmap = coco_mask.decode(to_rle(segmentation, height, width))
            for _ in range(rng.integers(0, 4 if number else 200)):
                dx, dy = rng.integers(-6, 7, 2).tolist()
                x, y = (box[:2] + rng.normal(0, 3, 2)).round(2).tolist()
                w, h = (box[2:] - box[:2]).round(2).tolist()
                rle = coco_mask.encode(np.asfortranarray(np.roll(bitmap, (dy, dx), (0, 1))))
                results.append((record.image_id, k, [x, y, w, h], rle))
        others = [rng.integers(0, len(dataset.categories), 3), record.federated.absent, record.federated.not_exhaustive]
        for k in np.concatenate(others):
            w, h = rng.uniform(8, 160, 2).round(2).tolist()
            rle = coco_mask.frPyObjects([[1, 1, w, 1, w, h, 1, h]], height, width)[0]
            results.append((record.image_id, k, [1.0, 1.0, w, h], rle))
    scores = rng.permutation(len(results)) / len(results)
    return [
        {
            "image_id": image_id,
            "category_id": dataset.categories[k],
            "bbox": box,
            "score": float(score),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for (image_id, k, box, rle), score in zip(results, scores, strict=True)
    ]


@pytest.fixture
def lvis(monkeypatch):
    """The package without its pictures, for which it wants OpenCV and matplotlib."""
    for name in ("cv2", "matplotlib", "matplotlib.pyplot", "matplotlib.collections", "matplotlib.patches"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "lvis.vis", ModuleType("lvis.vis"))
    sys.modules["lvis.vis"].LVISVis = None
    monkeypatch.setattr(np, "float", float, raising=False)
    return pytest.importorskip("lvis")


def of_lvis(lvis, dataset, results, kind):
    truth = lvis.LVIS(str(dataset.annotation_file))
    unused = "segmentation" if kind == "bbox" else "bbox"
    entries = [{key: value for key, value in result.items() if key != unused} for result in results]
    evaluator = lvis.LVISEval(truth, lvis.LVISResults(truth, entries), kind)
    evaluator.run()
    return {f"{kind}/{name.replace('@300', '')}": value for name, value in evaluator.get_results().items()}


def test_the_sample_has_what_lvis_adds(sample):
    assert len(sample.records) == 100
    assert Counter(sample.frequencies) == {"r": 454, "c": 461, "f": 315}
    content = json.loads(sample.annotation_file.read_text())
    for record, entry in zip(sample.records, content["images"], strict=True):
        assert record.path.endswith(entry["coco_url"].removeprefix("http://images.cocodataset.org/"))
        assert [sample.categories[k] for k in record.federated.absent] == entry["neg_category_ids"]
        assert [sample.categories[k] for k in record.federated.not_exhaustive] == entry["not_exhaustive_category_ids"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_same_numbers_as_lvis_gave(sample, kind):
    results = made_up_results(sample)
    assert max(Counter(result["image_id"] for result in results).values()) > 300
    metrics = score_results(sample, results, kind, CONFIG)
    assert [name.removeprefix(f"{kind}/") for name in metrics] == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR300", "ARs", "ARm", "ARl"
    ]  # fmt: skip
    assert tuple(metrics.values()) == pytest.approx(GOLDEN[kind], abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .warn. method:DeprecationWarning")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_same_numbers_as_lvis_gives(sample, lvis, kind):
    results = made_up_results(sample)
    metrics = score_results(sample, results, kind, CONFIG)
    renamed = {name.replace("AR300", "AR"): value for name, value in metrics.items()}
    assert renamed == pytest.approx(of_lvis(lvis, sample, results, kind), abs=1e-12)


def scene(tmp_path, boxes_only=False):
    """An image with one "a"; "b" is absent, nothing is known of "c", and not every "d" is annotated."""
    square = [2.0, 2.0, 8.0, 8.0]
    outline = [[2, 2, 10, 2, 10, 10, 2, 10]]
    image = {"id": 5, "coco_url": "http://there/train2017/5.png", "height": 12, "width": 16}
    content = {
        "images": [image | {"neg_category_ids": [12], "not_exhaustive_category_ids": [14]}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 11, "bbox": square, "segmentation": outline, "area": 64.0},
            {"id": 2, "image_id": 5, "category_id": 14, "bbox": square, "segmentation": outline, "area": 64.0},
        ],
        "categories": [{"id": i, "name": name, "frequency": "rcff"[i - 11]} for i, name in enumerate("abcd", start=11)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "lvis_v1_val.json").write_text(json.dumps(content))
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "5.png").touch()
    return LvisConfig(str(tmp_path), boxes_only=boxes_only).load("val")


def detections(*found):
    """Detections of image 5 as (class, score); a class that is not annotated has a box elsewhere."""
    boxes = [[2, 2, 10, 10] if right else [0, 0, 16, 4] for _, _, right in found]
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return 5, Detections(
        height=12,
        width=16,
        boxes=boxes,
        scores=np.array([score for _, score, _ in found], np.float32),
        classes=np.array([k for k, _, _ in found], np.int32),
        class_names=(),
        rles=full_masks(boxes, (12, 16)),
    )


def test_what_is_not_known_does_not_count(tmp_path):
    dataset = scene(tmp_path)
    right = (0, 0.9, True), (3, 0.5, True)
    metrics, _ = evaluate(dataset, [detections(*right)], CONFIG)
    assert (metrics["bbox/AP"], metrics["bbox/APr"], metrics["bbox/APf"]) == pytest.approx((1, 1, 1))
    assert np.isnan(metrics["bbox/APc"])
    unknown = (2, 0.99, False), (3, 0.99, False)  # a class nobody looked for, and one more of a class not all annotated
    metrics, results = evaluate(dataset, [detections(*right, *unknown)], CONFIG)
    assert (metrics["bbox/AP"], metrics["segm/AP"]) == pytest.approx((1, 1))
    assert len(results) == 4
    # A false positive of an annotated class counts: it is found first, so that precision is 1/2 at every recall.
    metrics, _ = evaluate(dataset, [detections(*right, (0, 0.99, False))], CONFIG)
    assert (metrics["bbox/APr"], metrics["bbox/APf"]) == pytest.approx((0.5, 1))


def test_only_the_best_300_of_an_image_count(tmp_path):
    dataset = scene(tmp_path)
    worse = [(1, 0.5, False)] * 299
    assert evaluate(dataset, [detections(*worse, (0, 0.4, True))], CONFIG)[0]["bbox/APr"] == pytest.approx(1)
    assert evaluate(dataset, [detections(*worse, (1, 0.5, False), (0, 0.4, True))], CONFIG)[0]["bbox/APr"] == 0


def test_masks_that_were_not_read_are_not_evaluated(tmp_path):
    metrics, _ = evaluate(scene(tmp_path, boxes_only=True), [detections((0, 0.9, True))], CONFIG)
    assert "bbox/AP" in metrics
    assert not any(name.startswith("segm") for name in metrics)
