"""Detections: what they decode to, what is taken of them, and their way through other formats and back."""

import itertools
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.inference.results.outputs import cutouts, label_image, mask_windows, polygons, table_rows, to_geojson

HEIGHT, WIDTH = 40, 60
NAMES = ("cat", "dog", "cow")


def encode(bitmap: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(bitmap, np.uint8))
    return {"size": list(bitmap.shape), "counts": rle["counts"].decode()}


def bitmaps() -> np.ndarray:
    """A ring, two parts that touch at a corner, one pixel, and nothing."""
    masks = np.zeros((4, HEIGHT, WIDTH), bool)
    masks[0, 5:20, 10:30] = True
    masks[0, 9:15, 15:24] = False
    masks[1, 10:15, 5:12] = masks[1, 15:20, 12:15] = masks[1, 30:, 50:] = True
    masks[2, 0, 0] = True
    return masks


def some(keypoints: bool = False) -> Detections:
    boxes = [[10, 5, 30, 20], [5, 10, 60, 40], [0, 0, 1, 1], [3.25, 4.5, 3.25, 9.125]]
    points = np.random.default_rng(0).uniform(0, 40, (4, 2, 3)).round(2).astype(np.float32)
    return Detections(
        height=HEIGHT,
        width=WIDTH,
        boxes=np.array(boxes, np.float32),
        scores=np.array([0.9, 0.7, 0.6, 0.1], np.float32),
        classes=np.array([2, 0, 1, 1], np.int32),
        class_names=NAMES,
        rles=tuple(encode(bitmap) for bitmap in bitmaps()),
        keypoints=points if keypoints else None,
        path="a.png",
    )


def same(a: Detections, b: Detections) -> None:
    assert (a.height, a.width, a.class_names, a.rles, a.path) == (b.height, b.width, b.class_names, b.rles, b.path)
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    assert (a.keypoints is None) == (b.keypoints is None)
    if a.keypoints is not None:
        np.testing.assert_array_equal(a.keypoints, b.keypoints)


def test_masks_names_and_length() -> None:
    found = some()
    assert len(found) == 4
    assert found.names == ["cow", "cat", "dog", "dog"]
    np.testing.assert_array_equal(found.masks, bitmaps())


@pytest.mark.parametrize("which", [np.array([2, 0]), np.array([True, False, True, False]), np.zeros(0, int)])
def test_take(which) -> None:
    taken = some(keypoints=True).take(which)
    assert len(taken) == len(np.arange(4)[which])
    np.testing.assert_array_equal(taken.masks, bitmaps()[which])
    np.testing.assert_array_equal(taken.scores, some().scores[which])
    np.testing.assert_array_equal(taken.keypoints, some(keypoints=True).keypoints[which])


@pytest.mark.parametrize("keypoints", [False, True])
def test_to_coco_results_and_back(keypoints) -> None:
    found = some(keypoints)
    results = found.to_coco(17, [11, 5, 8])
    assert [(r["image_id"], r["category_id"]) for r in results] == [(17, 8), (17, 11), (17, 5), (17, 5)]
    assert results[0]["bbox"] == [10, 5, 20, 15]
    back = Detections.from_coco(results[::-1], HEIGHT, WIDTH, NAMES, [11, 5, 8], "a.png")
    same(back, found)


def test_coco_polygons_and_uncompressed_rles_are_read() -> None:
    box = {"image_id": 1, "category_id": 2, "bbox": [10, 5, 20, 15], "score": 0.5}
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[5:20, 10:30] = True
    flat = square.ravel(order="F").astype(int)
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=2)))
    for segmentation in ([[10, 5, 30, 5, 30, 20, 10, 20]], {"size": [HEIGHT, WIDTH], "counts": runs.tolist()}):
        found = Detections.from_coco([box | {"segmentation": segmentation}], HEIGHT, WIDTH, NAMES)
        assert found.names == ["dog"]
        np.testing.assert_array_equal(found.masks[0], square)


def test_coco_results_that_do_not_fit_are_named() -> None:
    results = some().to_coco(1)
    with pytest.raises(UserError, match="category_id 3"):
        Detections.from_coco(results, HEIGHT, WIDTH, NAMES, [1, 2, 5])
    del results[1]["segmentation"]
    with pytest.raises(UserError, match="3 of 4 results have a 'segmentation'"):
        Detections.from_coco(results, HEIGHT, WIDTH, NAMES)


SOUND = {"image_id": 1, "category_id": 2, "bbox": [10, 5, 20, 15], "score": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, r"results\[1\] has the score null"),
        ({"score": "high"}, r"results\[1\] has the score 'high'"),
        ({"score": [0.5]}, r"results\[1\] has the score \[0.5\]"),
        ({"category_id": [2]}, r"results\[1\] has the unknown category_id \[2\]"),
        ({"bbox": [10, 5, 20]}, r"results\[1\] has the bbox"),
        ({"bbox": [10, 5, 20, 10**400]}, r"results\[1\] has the bbox"),
        ({"bbox": {}}, r"results\[1\] has the bbox"),
    ],
)
def test_foreign_results_that_are_none_are_named(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        Detections.from_coco([SOUND, SOUND | changes], HEIGHT, WIDTH, NAMES)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": "~~garbage"}, "not a compressed RLE"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "its size is"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**40]}, "do not cover"),
        ([[1, 2, 3, 4]], "4 coordinates"),
        ([], "no polygons"),
        (None, "it is null"),
    ],
)
def test_foreign_masks_never_reach_pycocotools(segmentation, message) -> None:
    with pytest.raises(UserError, match=message):
        Detections.from_coco([SOUND | {"segmentation": segmentation}], HEIGHT, WIDTH, NAMES)


def test_results_without_masks_or_without_anything() -> None:
    results = [{key: r[key] for key in ("image_id", "category_id", "bbox", "score")} for r in some().to_coco(1)]
    assert Detections.from_coco(results, HEIGHT, WIDTH, NAMES).rles is None
    assert len(Detections.from_coco([], HEIGHT, WIDTH, NAMES)) == 0


@pytest.mark.filterwarnings("ignore:OpenCV.*is not installed")
@pytest.mark.parametrize("keypoints", [False, True])
def test_to_supervision_and_back(keypoints) -> None:
    pytest.importorskip("supervision", reason="needs supervision")
    found = some(keypoints)
    theirs = found.to_supervision()
    assert list(theirs.data["class_name"]) == found.names
    np.testing.assert_array_equal(theirs.area, found.masks.sum(axis=(1, 2)))
    same(Detections.from_supervision(theirs[::-1], HEIGHT, WIDTH, NAMES, "a.png"), found)


def test_a_missing_supervision_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"pip install 'mask-rcnn-jax\[supervision\]'"):
        some().to_supervision()


def test_polygons_hold_the_centres_of_exactly_the_masks_pixels() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.random((HEIGHT, WIDTH)) + np.add.outer(np.sin(np.arange(HEIGHT) / 4), np.cos(np.arange(WIDTH) / 5))
    for mask in [*bitmaps(), smooth > 0.7, rng.random((HEIGHT, WIDTH)) > 0.5, np.ones((HEIGHT, WIDTH), bool)]:
        inside = np.zeros((HEIGHT, WIDTH), int)
        for rings in polygons(mask, 100, 200):
            part = sum(crossings_to_the_left(ring - (100, 200)) for ring in rings) % 2
            inside += part
            for ring in rings:
                np.testing.assert_array_equal(ring[0], ring[-1])
        np.testing.assert_array_equal(inside, mask)


def crossings_to_the_left(ring: np.ndarray) -> np.ndarray:
    """How many sides of the ring a ray from each pixel's centre to the left meets (even-odd rule)."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    # Corners lie at the height of centres: the ray is moved a little up.
    y = y + 1e-4
    count = np.zeros(x.shape, int)
    for (x1, y1), (x2, y2) in itertools.pairwise(ring):
        if y1 != y2:
            at = x1 + (y - y1) / (y2 - y1) * (x2 - x1)
            count += ((y1 <= y) != (y2 <= y)) & (at < x)
    return count


def test_geojson_has_holes_parts_and_properties() -> None:
    features = to_geojson(some())["features"]
    assert [feature["properties"]["instance"] for feature in features] == [1, 2, 3]  # the last has no pixels
    ring, parts, dot = (feature["geometry"] for feature in features)
    assert (ring["type"], len(ring["coordinates"])) == ("Polygon", 2)
    assert (parts["type"], len(parts["coordinates"])) == ("MultiPolygon", 3)
    assert np.ptp(np.array(dot["coordinates"][0]), axis=0).tolist() == [1, 1]
    assert features[0]["properties"] == {
        "instance": 1,
        "score": 0.9,
        "class": "cow",
        "classification": {"name": "cow"},
    }


def test_label_image_shows_the_better_score_on_top() -> None:
    expected = np.zeros((HEIGHT, WIDTH), int)
    for i in (3, 2, 1, 0):
        expected[bitmaps()[i]] = i + 1
    np.testing.assert_array_equal(label_image(some()), expected)


def test_cutouts_show_the_image_through_the_mask() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cut = dict(cutouts(image, some()))
    assert list(cut) == [0, 1, 2]
    np.testing.assert_array_equal(cut[0][..., :3], image[5:20, 10:30])
    np.testing.assert_array_equal(cut[0][..., 3], bitmaps()[0, 5:20, 10:30] * 255)


def test_table_rows() -> None:
    rows = list(table_rows(some(keypoints=True)))
    assert rows[0][:10] == ["a.png", 1, "cow", 2, 0.9, 10, 5, 30, 20, bitmaps()[0].sum()]
    assert len(rows[0]) == 10 + 6


def test_boxes_stand_in_for_masks() -> None:
    found = Detections(HEIGHT, WIDTH, np.array([[1.5, 2, 4, 5.2]], np.float32), *arrays_of_one(), NAMES, None)
    (mask, window), *_ = mask_windows(found)
    assert window == (1, 2, 4, 6)
    assert mask.all()
    assert (label_image(found) > 0).sum() == 12


def arrays_of_one() -> tuple[np.ndarray, np.ndarray]:
    return np.array([0.5], np.float32), np.array([0], np.int32)
