"""Panoptic quality beside the definition, over sets of pixels."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.data import DataConfig, read_kinds, read_numbers
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, evaluate_model, run
from mask_rcnn_jax.evaluation.panoptic import PanopticCounter, PanopticCounts, Regions, _mean_iou, _qualities
from mask_rcnn_jax.evaluation.table import format_table
from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.models import MaskRCNNConfig, PanopticConfig, SemanticHeadConfig, Variables
from mask_rcnn_jax.rle import as_text, encode_bitmap
from mask_rcnn_jax.structures import IGNORED
from tests.data.panoptic_files import HEIGHT, WIDTH, write_panoptic

CATEGORIES = 3


def regions(rng: np.random.Generator, *, crowds: bool = False) -> Regions:
    """Blocks of segments of random categories, with void; of some the category is unknown, which counts as nothing."""
    numbers = rng.choice([0, 3, 5, 8, 300, 70_000], (4, 5)).repeat(3, 0).repeat(4, 1)
    noise = rng.random(numbers.shape) < 0.15
    numbers = np.where(noise, rng.choice([0, 3, 5, 8, 300, 70_000], numbers.shape), numbers)
    present = [number for number in np.unique(numbers).tolist() if number]
    category_of = {number: int(rng.integers(CATEGORIES)) for number in present}
    lumps = {number: category_of.pop(number) for number in list(category_of) if crowds and rng.random() < 0.3}
    return Regions(numbers, category_of, lumps)


def literal(truth: Regions, found: Regions) -> np.ndarray:
    """Sum of IoU, matches, missed and wrong segments [4, C]: Kirillov et al. 2019 and panopticapi, by sets."""

    def pixels(of: Regions, number: int) -> set[tuple[int, int]]:
        return set(zip(*map(np.ndarray.tolist, np.nonzero(of.numbers == number)), strict=True))

    void, result = pixels(truth, 0), np.zeros((4, CATEGORIES))
    matched: set[tuple[str, int]] = set()
    for (a, one), (b, two) in itertools.product(truth.category_of.items(), found.category_of.items()):
        left, right = pixels(truth, a), pixels(found, b)
        iou = len(left & right) / len(left | (right - void))
        if one == two and iou > 0.5:
            result[0, one] += iou
            result[1, one] += 1
            matched |= {("truth", a), ("found", b)}
    for a, category in truth.category_of.items():
        result[2, category] += ("truth", a) not in matched
    for b, category in found.category_of.items():
        region = pixels(found, b)
        of_category = [number for number, of in truth.crowds.items() if of == category]
        crowd = pixels(truth, of_category[-1]) if of_category else set()
        result[3, category] += ("found", b) not in matched and 2 * len(region & (void | crowd)) <= len(region)
    return result


@pytest.mark.parametrize("crowds", [False, True])
def test_counts_are_those_of_the_definition(crowds) -> None:
    matches = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = regions(rng, crowds=crowds)
        other = regions(rng)
        # The same segments in part, under other numbers: random ones would hardly ever match.
        numbers = np.where(rng.random(truth.numbers.shape) < 0.3, other.numbers, truth.numbers)
        category_of = other.category_of | truth.category_of | truth.crowds
        present = set(np.unique(numbers).tolist())
        found = Regions(numbers * 2, {2 * n: c for n, c in category_of.items() if n in present})
        counts = PanopticCounts.none(CATEGORIES, 1)
        counts.count_segments(truth, found)
        expected = literal(truth, found)
        np.testing.assert_allclose([counts.iou, counts.matched, counts.missed, counts.wrong], expected, rtol=1e-12)
        matches += expected[1].sum()
    assert matches > 50


def test_qualities_are_means_over_the_categories_that_occur() -> None:
    counts = PanopticCounts(
        iou=np.array([1.5, 0.0, 0.0, 0.9]),
        matched=np.array([2.0, 0.0, 0.0, 1.0]),
        missed=np.array([1.0, 2.0, 0.0, 0.0]),
        wrong=np.array([1.0, 0.0, 0.0, 0.0]),
        pixels=np.zeros((1, 1)),
    )
    quality = _qualities(counts, slice(None))
    assert quality["PQ"] == pytest.approx((1.5 / 3 + 0 + 0.9) / 3)
    assert quality["SQ"] == pytest.approx((1.5 / 2 + 0 + 0.9) / 3)
    assert quality["RQ"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert np.isnan(_qualities(counts, slice(2, 3))["PQ"])


def test_the_mean_iou_is_over_the_kinds_of_the_truth() -> None:
    """As Detectron2's evaluation of semantic segmentation."""
    pixels = np.array([[6, 2, 0], [1, 3, 1], [0, 0, 0]])
    assert _mean_iou(pixels) == pytest.approx((6 / 9 + 3 / 7) / 2)
    assert np.isnan(_mean_iou(np.zeros((2, 2))))


def perfect(record) -> Detections:
    """Everything that the record shows, crowds but no void."""
    numbers, rows = read_numbers(record), record.semantic.segments
    things = rows[rows[:, 2] >= 0]
    kinds = read_kinds(record)
    return Detections(
        HEIGHT,
        WIDTH,
        boxes=np.zeros((len(things), 4), np.float32),
        scores=np.linspace(0.9, 0.6, len(things), dtype=np.float32),
        classes=things[:, 2].astype(np.int32),
        class_names=("red square", "blue square"),
        rles=tuple(as_text(encode_bitmap(numbers == number)) for number in things[:, 0].tolist()),
        stuff=np.where(kinds == IGNORED, np.uint8(2), kinds),
    )


def counted(dataset, change) -> dict[str, float]:
    counter = PanopticCounter(dataset, PanopticConfig(min_stuff_area=10))
    predictions = [(record.image_id, change(perfect(record))) for record in dataset.records]
    assert list(counter.counted(predictions)) == predictions
    return counter.metrics()


@pytest.fixture
def dataset(tmp_path):
    return write_panoptic(tmp_path).load("train")


def test_what_is_annotated_has_the_quality_one(dataset) -> None:
    metrics = counted(dataset, lambda found: found)
    names = [f"panoptic/{name}{part}" for part in ("", "_things", "_stuff") for name in ("PQ", "SQ", "RQ")]
    assert metrics == dict.fromkeys(["stuff/mIoU", *names], 1.0)
    table = format_table(metrics)
    assert "panoptic stuff   1.000  1.000  1.000" in table
    assert "stuff mIoU       1.000" in table


def test_quality_falls_by_what_is_missing(dataset) -> None:
    """In three images there are a red square less than blue ones, as one is a crowd."""
    metrics = counted(dataset, lambda found: found.take(found.classes == 0))
    assert metrics["panoptic/PQ_things"] == pytest.approx(0.5)
    assert metrics["panoptic/SQ_things"] == pytest.approx(0.5)
    assert metrics["panoptic/RQ_stuff"] == 1
    low = counted(dataset, lambda found: replace(found, scores=np.full_like(found.scores, 0.4)))
    assert low["panoptic/PQ_things"] == 0
    grass = counted(dataset, lambda found: replace(found, stuff=np.where(found.stuff > 0, np.uint8(1), found.stuff)))
    assert grass["panoptic/RQ_stuff"] < 1
    assert grass["stuff/mIoU"] < 1


def test_a_model_without_masks_has_a_mean_iou_alone(dataset) -> None:
    assert counted(dataset, lambda found: replace(found, rles=None)) == {"stuff/mIoU": 1.0}


@pytest.mark.parametrize("labels", ["path", "kinds_path"])
def test_labels_that_cannot_be_read_leave_out_their_image(dataset, monkeypatch, tmp_path, labels) -> None:
    """The third image's, which has no crowd: what is left is perfect, and counts no pixel of it."""
    of_kinds = tmp_path / "panoptic_stuff_train"
    records = [
        replace(each, semantic=replace(each.semantic, kinds_path=str(of_kinds / Path(each.semantic.path).name)))
        for each in dataset.records
    ]
    dataset = replace(dataset, records=records)
    found = [(record.image_id, perfect(record)) for record in records]
    Path(getattr(records[2].semantic, labels)).write_bytes(b"no image")
    monkeypatch.setattr(run, "predict", lambda *_, **__: iter(found))
    head = SemanticHeadConfig(num_kinds=3, combine=PanopticConfig(min_stuff_area=10))
    model = MaskRCNNConfig(num_classes=2, heads=(head,))
    data = DataConfig(short_side_eval=48, max_side=64, canvas=(64, 64), broken_images="skip", num_workers=0)
    result = evaluate_model(model, data, EvaluationConfig(), Variables({}, {}), dataset)
    assert [record.image_id for record in result.dataset.records] == [0, 1]
    assert {each["image_id"] for each in result.results} == {0, 1}
    assert (result.metrics["panoptic/PQ"], result.metrics["stuff/mIoU"]) == (1, 1)
    (line,) = result.left_out
    assert "1 images turned out unreadable" in line
    with pytest.raises(UserError, match="cannot be read"):
        evaluate_model(model, replace(data, broken_images="fail"), EvaluationConfig(), Variables({}, {}), dataset)
