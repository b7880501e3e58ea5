"""Coverage grids against bitmaps that pycocotools decodes."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data.records import masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode


def blob(rng, height=40, width=50):
    """A random smooth bitmap and its RLE."""
    y, x = np.mgrid[:height, :width]
    bitmap = np.zeros((height, width), bool)
    for _ in range(3):
        cy, cx, r = rng.uniform(5, height - 5), rng.uniform(5, width - 5), rng.uniform(2, 12)
        bitmap |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return bitmap, coco_mask.encode(np.asfortranarray(bitmap, np.uint8))


def overlap(low, high, size, length):
    """[size, length] share of each cell in each pixel, cell by cell."""
    shares = np.zeros((size, length))
    for i in range(size):
        start, stop = low + (high - low) * i / size, low + (high - low) * (i + 1) / size
        for j in range(length):
            shares[i, j] = max(min(stop, j + 1) - max(start, j), 0) / (stop - start)
    return shares


@pytest.mark.parametrize("seed", range(5))
def test_runs_decode_to_pycocotools_bitmap(seed):
    rng = np.random.default_rng(seed)
    bitmap = rng.random((37, 300)) < rng.choice([0.001, 0.1, 0.5])
    bitmap[0, 0] = seed % 2  # an RLE that begins with foreground has an empty first run
    rle = coco_mask.encode(np.asfortranarray(bitmap, np.uint8))
    runs = masks.run_lengths(rle["counts"])
    decoded = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(300, 37).T
    np.testing.assert_array_equal(decoded, bitmap)
    np.testing.assert_array_equal(masks.decode_window(rle, (10, 3, 290, 30)), bitmap[3:30, 10:290])


@pytest.mark.parametrize("counts", [b"", b"zz~~", b"\x00\x01", b"PPPPPPPPPPPPPPPPPP1", b"o", b"0O", b"abc "])
def test_broken_runs_are_refused(counts):
    with pytest.raises(ValueError, match="not a compressed RLE"):
        masks.run_lengths(counts)


@pytest.mark.parametrize("region", [(0, 0, 50, 40), (3, 4, 40, 30), (7.3, 9.8, 20.1, 15.2), (11, 12, 12, 13)])
@pytest.mark.parametrize("size", [7, 56])
def test_rle_coverage_is_exact(region, size):
    """Cells larger and smaller than pixels, on and between pixel edges."""
    rng = np.random.default_rng(int(region[0]) + size)
    bitmap, rle = blob(rng)
    x1, y1, x2, y2 = region
    expected = overlap(y1, y2, size, 40) @ bitmap @ overlap(x1, x2, size, 50).T
    result = masks.coverage(rle, np.array(region, np.float32), size)
    np.testing.assert_allclose(result, expected * 255, atol=0.51)


def test_coverage_of_a_mask_that_begins_in_the_first_pixel():
    rle = coco_mask.encode(np.asfortranarray(np.ones((6, 4), np.uint8)))
    assert (masks.coverage(rle, np.array([0, 0, 4, 6], np.float32), 8) == 255).all()


def test_polygon_coverage_of_a_rectangle_between_pixels():
    polygon = np.array([2.25, 3.5, 7.75, 3.5, 7.75, 9.0, 2.25, 9.0])
    inside = masks.coverage([polygon], np.array([2.25, 3.5, 7.75, 9.0], np.float32), 16)
    assert (inside == 255).all()
    around = masks.coverage([polygon], np.array([0, 0, 10, 12], np.float32), 40)
    assert around.sum() / 255 * 10 * 12 / 1600 == pytest.approx(5.5 * 5.5, rel=0.03)


def test_polygon_parts_are_united():
    left, right = np.array([0.0, 0, 4, 0, 4, 8, 0, 8]), np.array([3.0, 0, 8, 0, 8, 8, 3, 8])
    assert (masks.coverage([left, right], np.array([0, 0, 8, 8], np.float32), 8) == 255).all()


def test_visible_box_is_tight():
    bitmap = np.zeros((40, 50), np.uint8)
    bitmap[10:20, 5:30] = 1
    rle = coco_mask.encode(np.asfortranarray(bitmap))
    polygon = [np.array([5.0, 10, 30, 10, 30, 20, 5, 20])]
    region = np.array([12.5, 2, 48, 18], np.float32)
    np.testing.assert_array_equal(masks.visible_box(rle, region), [12.5, 10, 30, 18])
    np.testing.assert_allclose(masks.visible_box(polygon, region), [12.5, 10, 30, 18], atol=0.33)
    for segmentation in (rle, polygon):
        assert masks.visible_box(segmentation, np.array([32, 22, 50, 40], np.float32)) is None


def target_from_bitmap(bitmap, roi, size=28, samples=6):
    """The mask inside `roi` by point samples of the bitmap: covered for at least half of a bin's points."""
    x1, y1, x2, y2 = roi
    points = (np.arange(size * samples) + 0.5) / (size * samples)
    x = np.floor(x1 + points * (x2 - x1)).astype(int)
    y = np.floor(y1 + points * (y2 - y1)).astype(int)
    inside = ((y >= 0) & (y < bitmap.shape[0]))[:, None] & ((x >= 0) & (x < bitmap.shape[1]))
    values = bitmap[np.clip(y, 0, bitmap.shape[0] - 1)][:, np.clip(x, 0, bitmap.shape[1] - 1)] * inside
    return values.reshape(size, samples, size, samples).mean((1, 3)) >= 0.5


def target_from_grid(grid, region, roi, size=28, samples=4):
    """The same from a coverage grid, bilinear between the centres of its cells, nothing outside."""
    cells = len(grid)
    points = (np.arange(size * samples) + 0.5) / (size * samples)
    weights = []
    for axis in (1, 0):
        at = roi[axis] + points * (roi[axis + 2] - roi[axis])
        at = (at - region[axis]) / (region[axis + 2] - region[axis]) * cells - 0.5
        weights.append(np.maximum(1 - abs(at[:, None] - np.arange(cells)), 0))
    values = weights[0] @ (grid / 255.0) @ weights[1].T
    return values.reshape(size, samples, size, samples).mean((1, 3)) >= 0.5


@pytest.mark.parametrize("name", ["nuclei", "coco_mini", "balloon", "coco_person_kp"])
def test_targets_from_grids_agree_with_exact_ones(shared, name):
    """Mean IoU at 28x28 over proposals around real instances, polygons and RLE (semantics.md asks for .95)."""
    content = json.loads((shared / "data" / name / "annotations" / "instances_val.json").read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    rng = np.random.default_rng(0)
    annotations = [a for a in content["annotations"] if not a["iscrowd"] and min(a["bbox"][2:]) >= 4]
    ious = []
    for annotation in [annotations[i] for i in rng.permutation(len(annotations))[:120]]:
        height, width = sizes[annotation["image_id"]]
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            # The exact target of a polygon is the polygon: drawn large, its pixels do not matter.
            segmentation, zoom = [np.array(points, np.float64) for points in segmentation], 4
            large = masks.to_rle([points * zoom for points in segmentation], height * zoom, width * zoom)
        else:
            segmentation, zoom = segmentation | {"counts": segmentation["counts"].encode()}, 1
            large = segmentation
        bitmap = coco_mask.decode(large).astype(bool)
        x, y, w, h = annotation["bbox"]
        box = np.clip([x, y, x + w, y + h], 0, [width, height] * 2).astype(np.float32)
        roi = box + rng.uniform(-0.12, 0.12, 4) * [w, h, w, h]
        exact = target_from_bitmap(bitmap, roi * zoom)
        ours = target_from_grid(masks.coverage(segmentation, box, 56), box, roi)
        ious.append((exact & ours).sum() / max((exact | ours).sum(), 1))
    assert np.mean(ious) > 0.95, f"mean IoU {np.mean(ious):.3f}, lowest {min(ious):.3f}"
