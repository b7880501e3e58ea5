import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mask_rcnn_jax import ops

keypoint_targets = jax.jit(ops.keypoint_targets, static_argnames="size")
decode_keypoints = jax.jit(ops.decode_keypoints, static_argnames="convention")

IMAGE = (800, 1333)


def annotated(seed, num=6, joints=5):
    """Keypoints of all visibilities in and around RoIs; some lie on borders."""
    rng = np.random.default_rng(seed)
    rois = np.sort(rng.uniform(0, 100, (num, 2, 2)), axis=1).reshape(num, 4).astype(np.float32)
    at = rng.uniform(-0.2, 1.2, (num, joints, 2)).astype(np.float32)
    at[:2] = rng.integers(0, 2, at[:2].shape)
    start, end = rois[:, None, :2], rois[:, None, 2:]
    places = np.where(at == 1, end, start + at * (end - start))
    visibility = rng.integers(0, 3, (num, joints, 1))
    return np.concatenate([places, visibility], axis=2).astype(np.float32), rois


def cell_by_hand(keypoint, roi, size):
    """The column and row of a keypoint, or None; as the references write it."""
    cell = []
    for axis in range(2):
        start, end, at = roi[axis], roi[axis + 2], keypoint[axis]
        cell.append(size - 1 if at == end else int(np.floor((at - start) * (np.float32(size) / (end - start)))))
    inside = all(0 <= index < size for index in cell)
    return cell if inside and keypoint[2] > 0 else None


@pytest.mark.parametrize("size", [56, 7])
def test_targets_agree_with_loops(size):
    keypoints, rois = annotated(0)
    gt_index = np.array([3, 0, 1, 2, 5, 4])
    cells, valid = keypoint_targets(jnp.array(keypoints), jnp.array(rois[gt_index]), jnp.array(gt_index), size)
    for index, of_roi, valid_of_roi in zip(gt_index, cells, valid, strict=True):
        for keypoint, cell, is_valid in zip(keypoints[index], of_roi, valid_of_roi, strict=True):
            expected = cell_by_hand(keypoint, rois[index], size)
            assert bool(is_valid) == (expected is not None)
            assert int(cell) == (expected[1] * size + expected[0] if expected else 0)


def test_targets_agree_with_torchvision(torchvision):
    import torch
    from torchvision.models.detection.roi_heads import keypoints_to_heatmap

    keypoints, rois = annotated(1, num=40, joints=17)
    cells, valid = keypoint_targets(jnp.array(keypoints), jnp.array(rois), jnp.arange(40))
    expected, expected_valid = keypoints_to_heatmap(torch.tensor(keypoints), torch.tensor(rois), 56)
    np.testing.assert_array_equal(cells, expected.numpy())
    np.testing.assert_array_equal(valid, expected_valid.numpy().astype(bool))


def test_the_right_and_lower_borders_belong_to_the_last_cells():
    keypoints = jnp.array([[[30.0, 40, 2], [10, 20, 1], [30.1, 40, 2], [30, 40, 0]]])
    cells, valid = keypoint_targets(keypoints, jnp.array([[10.0, 20, 30, 40]]), jnp.array([0]))
    np.testing.assert_array_equal(cells, [[56 * 56 - 1, 0, 0, 0]])
    np.testing.assert_array_equal(valid, [[True, True, False, False]])


def test_padded_rois_have_no_targets():
    keypoints = jnp.zeros((1, 3, 3)).at[..., 2].set(2)
    cells, valid = keypoint_targets(keypoints, jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32))
    assert not cells.any()
    assert not valid.any()


def bicubic_matrix(length, side):
    """torch's bicubic interpolation of `side` cells to `length` pixels, tap by tap (A = -0.75)."""
    matrix = np.zeros((length, side))
    for pixel in range(length):
        at = (pixel + 0.5) * side / length - 0.5
        low = int(np.floor(at))
        for tap in range(low - 1, low + 3):
            d = abs(at - tap)
            weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[pixel, min(max(tap, 0), side - 1)] += weight
    return matrix


def decode_by_matrices(heatmap, box, convention):
    """(x, y, score) from the whole resized map, and by how much its highest pixel leads."""
    width, height = np.maximum(box[2:] - box[:2], 1)
    columns, rows = int(np.ceil(width)), int(np.ceil(height))
    side = len(heatmap)
    resized = bicubic_matrix(rows, side) @ heatmap.astype(np.float64) @ bicubic_matrix(columns, side).T
    row, column = np.unravel_index(np.argmax(resized), resized.shape)
    second, highest = np.sort(np.append(resized.ravel(), -np.inf))[-2:]
    score = highest if convention == "torchvision" else 1 / np.exp(heatmap - highest).sum()
    return [(column + 0.5) * width / columns + box[0], (row + 0.5) * height / rows + box[1], score], highest - second


def peaked(seed, num, joints=3, side=56):
    """Heatmaps with a bump somewhere, noise on top, and for the first box nothing but noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    center = rng.uniform(0, side, (2, num, joints, 1, 1))
    bumps = 8 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 30)
    bumps[0] = 0
    return (bumps + rng.normal(0, 0.3, bumps.shape)).astype(np.float32)


def boxes_of_every_size(seed):
    """From below a pixel to the whole image; slivers, and sides at and beside those of whole tiles."""
    rng = np.random.default_rng(seed)
    sides = [(0.3, 0.7), (1, 1), (1.2, 60.5), (300.4, 1), (56, 56), (128, 64), (129, 65), (128.1, 63.9), (257, 128)]
    sides = np.array([*sides, *rng.uniform(5, 400, (9, 2)), (1333, 2), (1333, 800)])
    corner = rng.uniform(0, 1, sides.shape) * (np.array(IMAGE[::-1]) - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_decoding_agrees_with_whole_maps(convention):
    boxes = boxes_of_every_size(0)
    heatmaps = peaked(0, len(boxes))
    decoded = np.asarray(decode_keypoints(jnp.array(heatmaps), jnp.array(boxes), convention))
    clear = 0
    for box, maps, keypoints in zip(boxes, heatmaps, decoded, strict=True):
        for heatmap, keypoint in zip(maps, keypoints, strict=True):
            expected, lead = decode_by_matrices(heatmap, box, convention)
            np.testing.assert_allclose(keypoint[2], expected[2], rtol=2e-5)
            if lead > 1e-5:
                clear += 1
                np.testing.assert_allclose(keypoint, expected, rtol=2e-5, atol=1e-3)
    assert clear >= 0.95 * heatmaps.shape[0] * heatmaps.shape[1]


def test_decoding_agrees_with_torchvision(torchvision):
    import torch
    from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

    boxes = boxes_of_every_size(1)
    heatmaps = peaked(1, len(boxes))
    decoded = np.asarray(decode_keypoints(jnp.array(heatmaps), jnp.array(boxes), "torchvision"))
    places, scores = heatmaps_to_keypoints(torch.tensor(heatmaps), torch.tensor(boxes))
    np.testing.assert_allclose(decoded[..., 2], scores.numpy(), rtol=1e-5)
    far = np.abs(decoded[..., :2] - places[..., :2].numpy()).max(axis=-1) > 1e-3
    for index, joint in np.argwhere(far):  # only where two pixels are as high, to rounding
        assert decode_by_matrices(heatmaps[index, joint], boxes[index], "torchvision")[1] < 1e-5
    assert far.mean() < 0.05


def test_equal_pixels_go_to_the_first_whatever_the_tiles():
    boxes = jnp.array([[10.0, 20, 510, 720], [3, 4, 5, 6]])
    decoded = decode_keypoints(jnp.zeros((2, 2, 56, 56)), boxes, "torchvision")
    np.testing.assert_array_equal(decoded, [[[10.5, 20.5, 0]] * 2, [[3.5, 4.5, 0]] * 2])


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_padded_boxes_decode_to_zeros_and_change_nothing(convention):
    boxes = boxes_of_every_size(2)[:12]
    heatmaps = peaked(2, len(boxes))
    plain = decode_keypoints(jnp.array(heatmaps), jnp.array(boxes), convention)
    # Padded detections are pooled too: their heatmaps hold anything finite.
    heatmaps = np.concatenate([heatmaps, peaked(3, 20)])
    padded = decode_keypoints(jnp.array(heatmaps), jnp.pad(jnp.array(boxes), ((0, 20), (0, 0))), convention)
    np.testing.assert_array_equal(padded[:12], plain)
    assert not padded[12:].any()


def test_a_shift_of_the_box_shifts_the_keypoints():
    boxes = jnp.array(np.round(boxes_of_every_size(4)[1:12]))  # whole pixels, so that sides stay the same
    heatmaps = jnp.array(peaked(4, 11))
    moved = decode_keypoints(heatmaps, boxes + jnp.array([7.0, 5, 7, 5])) - decode_keypoints(heatmaps, boxes)
    np.testing.assert_allclose(moved, np.broadcast_to([7, 5, 0], moved.shape), atol=2e-4)


def test_decoding_maps_over_images_and_devices():
    boxes = np.stack([boxes_of_every_size(seed)[seed : seed + 6] for seed in range(8)])
    heatmaps = np.stack([peaked(seed, 6) for seed in range(8)])
    one_by_one = [decode_keypoints(jnp.array(maps), jnp.array(of)) for maps, of in zip(heatmaps, boxes, strict=True)]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    mapped = jax.shard_map(jax.vmap(ops.decode_keypoints), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    for decoded in (jax.jit(mapped)(heatmaps, boxes), jax.jit(jax.vmap(ops.decode_keypoints))(heatmaps, boxes)):
        np.testing.assert_allclose(decoded, np.stack(one_by_one), rtol=1e-5, atol=1e-3)


def test_float64_stays_and_less_becomes_float32():
    heatmaps, boxes = peaked(5, 2), boxes_of_every_size(5)[[6, 12]]
    with jax.enable_x64(True):
        exact = decode_keypoints(jnp.array(heatmaps, jnp.float64), jnp.array(boxes, jnp.float64))
        assert exact.dtype == jnp.float64
        expected = [
            [decode_by_matrices(m, box.astype(float), "detectron2")[0] for m in maps]
            for maps, box in zip(heatmaps.astype(float), boxes, strict=True)
        ]
        np.testing.assert_allclose(exact, expected, rtol=1e-12)
    assert decode_keypoints(jnp.array(heatmaps, jnp.bfloat16), jnp.array(boxes)).dtype == jnp.float32
