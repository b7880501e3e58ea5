"""Polygons and RLEs that pycocotools could not be trusted with: the same pixels, in bounded memory, or a reason."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import to_rle
from mask_rcnn_jax.data.records import rasterise
from mask_rcnn_jax.data.records.masks import bitmap
from mask_rcnn_jax.rle import decode_window, run_lengths


def pixels(polygons, height=12, width=16):
    return decode_window(to_rle(polygons, height, width), (0, 0, width, height))


def test_long_outlines_cover_pycocotools_pixels(monkeypatch):
    """Corners in and around the image, on and between pixels, sides flat and steep."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(rasterise, "_WALKED", 0)
    monkeypatch.setattr(rasterise, "_AT_ONCE", 50)
    for case in range(300):
        height, width = rng.integers(1, 50, 2).tolist()
        corners = rng.normal(0, rng.choice([1, 20, 1000]), (rng.integers(3, 12), 2)) + rng.uniform(0, 40, 2)
        corners = np.round(corners * 5) / 5 if case % 3 == 0 else np.round(corners) if case % 3 == 1 else corners
        expected = coco_mask.frPyObjects([corners.ravel()], height, width)[0]
        assert to_rle([corners.ravel()], height, width) == expected


@pytest.mark.parametrize("far", [1e5, 1e7, 1e8, 1e12, 1e300])
def test_corners_far_away(monkeypatch, far):
    """A half-plane and half of a diagonal, of which pycocotools is asked nothing that takes it long."""
    monkeypatch.setattr(rasterise, "_API", Counting())
    beyond = np.array([3, -far, far, -far, far, far, 3, far])
    expected = np.arange(16) >= 3
    np.testing.assert_array_equal(pixels([beyond]), np.tile(expected, (12, 1)))
    both = pixels([beyond, np.array([0.0, 0, 2, 0, 2, 2, 0, 2])])
    assert both.sum() == 12 * 13 + 4
    x, y = np.meshgrid(np.arange(16), np.arange(12))
    diagonal = pixels([np.array([0, 0, far, far, 0, far])])
    assert diagonal[y > x + 1].all()
    assert not diagonal[y < x - 1].any()
    # A visit of an image cuts its region out of the plane.
    region = np.array([2, 0, 4, 12], np.float32)
    np.testing.assert_array_equal(bitmap([beyond], region, (6, 8)), np.tile(np.arange(8) >= 4, (6, 1)))


class Counting:
    """pycocotools, with the steps counted that it walks along outlines."""

    def frPyObjects(self, objects, height, width):
        if isinstance(objects, list):
            for coordinates in objects:
                corners = np.reshape(coordinates, (-1, 2))
                sides = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
                assert 5 * sides.sum() < 1.1 * 2**20
        return coco_mask.frPyObjects(objects, height, width)

    def merge(self, rles):
        return coco_mask.merge(rles)


def test_many_corners_in_a_large_image(monkeypatch):
    """Within the image an outline may be long too."""
    side = 2000
    monkeypatch.setattr(rasterise, "_API", Counting())
    x = np.linspace(0, side, 401)
    corners = np.stack([x, np.where(np.arange(401) % 2, side, 0)], axis=1)
    assert coco_mask.area(to_rle([np.concatenate([corners.ravel(), [side, side]])], side, side)) > 0


def test_many_polygons_are_united_in_groups(monkeypatch):
    """Runs that are walked through grow with the polygons, not with their square."""
    corners = np.random.default_rng(0).uniform(0, 300, (500, 1, 2)) + np.array([[0, 0], [9, 0], [9, 9]])
    polygons = [triangle.ravel() for triangle in corners]
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 310, 310))
    merge, walked = coco_mask.merge, []

    def counted(rles):
        walked.append(len(rles) * len(merge(rles)["counts"]))
        return merge(rles)

    monkeypatch.setattr(coco_mask, "merge", counted)
    assert to_rle(polygons, 310, 310) == expected
    assert sum(walked) < 500 * len(expected["counts"]) / 3


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 2, 3, 4], "4 coordinates"),  # pycocotools takes these for a box
        ([1, 2, 3, 4, 5, 6, 7], "7 coordinates"),
        ([1, 2, 3, 4, 5, float("inf")], "not all coordinates are finite"),
        ([1, 2, 3, 4, 5, float("nan")], "not all coordinates are finite"),
        ([1, 2, 3, 4, 5, 10**400], "not all coordinates are finite"),
        ([1, 2, 3, 4, 5, "6"], "not all coordinates are numbers"),
        ([1, 2, 3, 4, 5, None], "not all coordinates are numbers"),
        ([1, 2, 3, 4, 5, True], "not all coordinates are numbers"),
        ("123456", "no list"),
        (7, "no list"),
        ([[[1, 2]], 3, 4, 5, 6, 7], "not all coordinates are numbers"),
        ([0] * (rasterise.MOST_COORDINATES + 2), "more than"),
    ],
)
def test_polygons_that_are_none(polygon, message):
    with pytest.raises(ValueError, match=message):
        rasterise.polygon(polygon)


def test_pairs_are_read_as_well():
    np.testing.assert_array_equal(rasterise.polygon([[1, 2], [3.5, 4], [5, 6]]), [1, 2, 3.5, 4, 5, 6])


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ([16, 12], [192], "its size is 16 x 12, the image's 12 x 16"),
        ([2**31, 2**31], [2**62], "its size is"),
        ([10**400, 16], [192], "its size is an integer of 1329 bits x 16"),
        ([12], [192], "not two numbers"),
        ("12", [192], "not two numbers"),
        (None, [192], "not two numbers"),
        ([12, 16], [191], "do not cover"),
        ([12, 16], [-1, 193], "do not cover"),
        ([12, 16], [2**62, 2**62, 2**62, 2**62, 192], "do not cover"),  # which adds up to 192 in 64 bits
        ([12, 16], [10**400], "do not cover"),
        ([12, 16], [], "do not cover"),
        ([12, 16], [192.5], "not all whole"),
        ([12, 16], ["192"], "not all whole"),
        ([12, 16], [True] * 192, "not all whole"),
        ([12, 16], None, "neither a list nor text"),
        ([12, 16], {}, "neither a list nor text"),
        ([12, 16], "~~", "not a compressed RLE"),
        ([12, 16], "é\ud800", "not a compressed RLE"),
        ([12, 16], "P" * 9 + "1", "not a compressed RLE"),
        ([12, 16], "PPPPP?", "do not cover"),  # a run of gigabytes
    ],
)
def test_rles_that_are_none(size, counts, message):
    with pytest.raises(ValueError, match=message):
        to_rle({"size": size, "counts": counts}, 12, 16)


@pytest.mark.parametrize("digits", [6, 7, 8])
def test_counts_that_pycocotools_would_misread(digits):
    """Longer than they need to be: pycocotools loses the sign of negative numbers, and with it the mask."""
    runs = [50, 20, 10, 5, 107]
    differences = [*runs[:3], runs[3] - runs[1], runs[4] - runs[2]]
    counts = b"".join(
        bytes(48 + (value >> 5 * place & 31) + 32 * (place < digits - 1) for place in range(digits))
        for value in differences
    )
    assert run_lengths(counts).tolist() == runs
    if digits == 6:
        assert coco_mask.area(to_rle({"size": [12, 16], "counts": counts}, 12, 16)) == 25
    else:
        with pytest.raises(ValueError, match="more digits than pycocotools"):
            to_rle({"size": [12, 16], "counts": counts}, 12, 16)


@pytest.mark.parametrize("polygons", [[{}], [None], [10**400] * 6, [(1, 2, 3, 4, 5, "x")]])
def test_what_is_no_list_of_polygons(polygons):
    with pytest.raises(ValueError, match=r"it is no list|not all coordinates"):
        to_rle(polygons, 12, 16)
    square = (1, 1, 5, 1, 5, 5, 1, 5)
    assert to_rle([square], 12, 16) == to_rle([list(square)], 12, 16) == to_rle([np.array(square)], 12, 16)


def test_counts_as_text_bytes_and_list_are_one():
    rle = coco_mask.encode(np.asfortranarray(np.tri(12, 16, dtype=np.uint8)))
    runs = run_lengths(rle["counts"]).tolist()
    for counts in (rle["counts"], rle["counts"].decode(), runs):
        assert to_rle({"size": [12, 16], "counts": counts}, 12, 16) == rle
