import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax import ops
from mask_rcnn_jax.ops import RoIGrid

mask_targets = jax.jit(ops.mask_targets, static_argnames="grid")
paste_masks = jax.jit(ops.paste_masks, static_argnames=("canvas", "convention"))
roi_align = jax.jit(ops.roi_align, static_argnames=("spatial_scale", "grid"))

HEIGHT, WIDTH = 60, 80


def blob(seed, height=HEIGHT, width=WIDTH):
    """An ellipse, its box, and its bitmap."""
    rng = np.random.default_rng(seed)
    cx, cy = rng.uniform(0.4, 0.6) * width, rng.uniform(0.4, 0.6) * height
    a, b = rng.uniform(0.15, 0.38) * width, rng.uniform(0.15, 0.38) * height
    y, x = np.mgrid[:height, :width] + 0.5
    bitmap = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    return bitmap, np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def crop(bitmap, box, side):
    """Coverage of a grid of side x side cells over the box, from a bitmap magnified without smoothing."""
    x1, y1, x2, y2 = box
    fine = 4
    y = y1 + (np.arange(side * fine) + 0.5) / (side * fine) * (y2 - y1)
    x = x1 + (np.arange(side * fine) + 0.5) / (side * fine) * (x2 - x1)
    cells = bitmap[y.astype(int)][:, x.astype(int)].reshape(side, fine, side, fine)
    return np.round(255 * cells.mean((1, 3))).astype(np.uint8)


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def jittered(box, seed, num=8):
    """RoIs around a box, inside the image, as proposals are."""
    noise = np.random.default_rng(seed).normal(0, 0.1, (num, 4)) * np.tile(box[2:] - box[:2], 2)
    return np.clip(box + noise, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)


@pytest.mark.parametrize("aligned", [True, False])
def test_targets_of_a_bitmap_are_its_roi_align(aligned):
    # BitMasks.crop_and_resize (aligned) before its threshold, and project_masks_on_boxes (not aligned).
    bitmaps, boxes = zip(*(blob(seed) for seed in range(3)), strict=True)
    rois = np.concatenate([jittered(box, seed) for seed, box in enumerate(boxes)])
    gt_index = np.repeat(np.arange(3), 8)
    regions = jnp.tile(jnp.array([0.0, 0, WIDTH, HEIGHT]), (3, 1))
    masks, grid = jnp.array(255 * np.stack(bitmaps), jnp.uint8), RoIGrid(14, aligned=aligned)
    targets = mask_targets(masks, regions, jnp.array(rois), jnp.array(gt_index), grid)
    for roi, gt, target in zip(rois, gt_index, targets, strict=True):
        features = jnp.array(bitmaps[gt], jnp.float32)[..., None]
        exact = roi_align(features, jnp.array(roi)[None], 1.0, grid)[0, :, :, 0]
        np.testing.assert_allclose(target, exact, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_targets_of_a_crop_agree_with_those_of_the_bitmap(aligned):
    overlaps, grid = [], RoIGrid(28, aligned=aligned)
    for seed in range(5):
        bitmap, box = blob(seed)
        rois = jnp.array(jittered(box, seed))
        gt_index = jnp.zeros(len(rois), jnp.int32)
        whole = jnp.array([[0.0, 0, WIDTH, HEIGHT]])
        exact = mask_targets(jnp.array(255 * bitmap[None], jnp.uint8), whole, rois, gt_index, grid)
        cells = jnp.array(crop(bitmap, box, 56)[None])
        cropped = mask_targets(cells, jnp.array(box)[None], rois, gt_index, grid)
        overlaps += [iou(np.asarray(a) >= 0.5, np.asarray(b) >= 0.5) for a, b in zip(exact, cropped, strict=True)]
    assert np.mean(overlaps) > 0.95


def test_nothing_lies_outside_the_region():
    # A full mask of a box, seen from a RoI twice its side: the middle half is inside.
    masks = jnp.full((1, 8, 8), 255, jnp.uint8)
    region, roi = jnp.array([[10.0, 10, 20, 20]]), jnp.array([[5.0, 5, 25, 25]])
    targets = mask_targets(masks, region, roi, jnp.array([0]), RoIGrid(8))
    expected = np.zeros((8, 8))
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(targets[0], expected)


def test_padded_targets_are_finite_and_change_nothing():
    bitmap, box = blob(0)
    masks, region = jnp.array(crop(bitmap, box, 56)[None]), jnp.array(box)[None]
    rois = jnp.array(jittered(box, 0))
    plain = mask_targets(masks, region, rois, jnp.zeros(8, jnp.int32), RoIGrid(28))
    padded = mask_targets(
        jnp.pad(masks, ((0, 2), (0, 0), (0, 0))),
        jnp.pad(region, ((0, 2), (0, 0))),
        jnp.pad(rois, ((0, 3), (0, 0))),
        jnp.array([0] * 8 + [0, 1, 2]),
        RoIGrid(28),
    )
    np.testing.assert_array_equal(padded[:8], plain)
    assert np.isfinite(padded).all()


def test_bitmaps_too_large_for_one_piece_are_taken_roi_by_roi():
    masks = jnp.full((2, 1200, 1300), 255, jnp.uint8)
    regions = jnp.tile(jnp.array([0.0, 0, 1300, 1200]), (2, 1))
    rois = jnp.array([[10.0, 10, 500, 700], [3, 3, 9, 9], [700, 800, 1300, 1200]])
    np.testing.assert_allclose(mask_targets(masks, regions, rois, jnp.array([0, 1, 1]), RoIGrid(7)), 1, rtol=1e-5)


def paste_by_loops(mask, box, height, width):
    """detectron2.layers.mask_ops._do_paste_mask, pixel by pixel."""
    side = len(mask)
    padded = np.pad(mask, 1).astype(np.float64)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            at_x = (x + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5
            at_y = (y + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5
            if not (-1 < at_x < side and -1 < at_y < side):
                continue
            i, j = int(np.floor(at_y)) + 1, int(np.floor(at_x)) + 1
            dy, dx = at_y + 1 - i, at_x + 1 - j
            corners = padded[i : i + 2, j : j + 2]
            out[y, x] = (1 - dy) * ((1 - dx) * corners[0, 0] + dx * corners[0, 1]) + dy * (
                (1 - dx) * corners[1, 0] + dx * corners[1, 1]
            )
    return out


BOXES = np.array([[3.2, 4.7, 30.1, 22.4], [-5, -6, 12, 40], [10.4, 8.3, 12.1, 9.9], [25, 15, 60, 50]], np.float32)


def test_paste_agrees_with_loops():
    masks = np.random.default_rng(0).uniform(0, 1, (4, 7, 7)).astype(np.float32)
    pasted = paste_masks(jnp.array(masks), jnp.array(BOXES), (32, 40))
    assert pasted.shape == (4, 32, 40)
    for mask, box, bitmap in zip(masks, BOXES, pasted, strict=True):
        expected = paste_by_loops(mask, box, 32, 40)
        clear = np.abs(expected - 0.5) > 1e-5
        np.testing.assert_array_equal(np.asarray(bitmap)[clear], (expected >= 0.5)[clear])


def resize_by_loops(image, height, width):
    """torch.nn.functional.interpolate(mode="bilinear", align_corners=False)."""

    def positions(out, size):
        at = np.maximum((np.arange(out) + 0.5) * size / out - 0.5, 0)
        low = at.astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    top, bottom, dy = positions(height, image.shape[0])
    left, right, dx = positions(width, image.shape[1])
    rows = image[top] * (1 - dy)[:, None] + image[bottom] * dy[:, None]
    return rows[:, left] * (1 - dx) + rows[:, right] * dx


def paste_torchvision_by_slices(mask, box, height, width):
    """torchvision.models.detection.roi_heads: expand_masks, expand_boxes and paste_mask_in_image."""
    mask = np.pad(mask.astype(np.float64), 1)
    scale = len(mask) / (len(mask) - 2)
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * scale
    x1, y1, x2, y2 = np.trunc(np.concatenate([center - half, center + half])).astype(int)
    resized = resize_by_loops(mask, max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
    out = np.zeros((height, width))
    left, right, top, bottom = max(x1, 0), min(x2 + 1, width), max(y1, 0), min(y2 + 1, height)
    out[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
    return out


def test_paste_as_torchvision_agrees_with_slices():
    masks = np.random.default_rng(1).uniform(0, 1, (4, 7, 7)).astype(np.float32)
    pasted = paste_masks(jnp.array(masks), jnp.array(BOXES), (32, 40), "torchvision")
    for mask, box, bitmap in zip(masks, BOXES, pasted, strict=True):
        expected = paste_torchvision_by_slices(mask, box, 32, 40)
        clear = np.abs(expected - 0.5) > 1e-5
        np.testing.assert_array_equal(np.asarray(bitmap)[clear], (expected > 0.5)[clear])


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_padded_detections_paste_nothing(convention):
    masks = jnp.ones((12, 7, 7)).at[10:].set(0)
    boxes = jnp.tile(jnp.array([[2.0, 3, 9, 9]]), (12, 1)).at[9:].set(0)
    pasted = paste_masks(masks, boxes, (12, 16), convention)
    assert pasted[:9].any((1, 2)).all()
    assert not pasted[9:].any()
    assert paste_masks(masks[:0], boxes[:0], (12, 16), convention).shape == (0, 12, 16)


def test_paste_inverts_targets():
    bitmap, box = blob(2)
    masks, region = jnp.array(255 * bitmap[None], jnp.uint8), jnp.array([[0.0, 0, WIDTH, HEIGHT]])
    targets = mask_targets(masks, region, jnp.array(box)[None], jnp.array([0]), RoIGrid(28))
    assert iou(np.asarray(paste_masks(targets, jnp.array(box)[None], (HEIGHT, WIDTH))[0]), bitmap) > 0.97
