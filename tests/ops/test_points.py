import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mask_rcnn_jax import ops
from mask_rcnn_jax.ops.pooling import points as point_ops

sample_points = jax.jit(point_ops.sample_points)
sample_coarse = jax.jit(point_ops.sample_coarse)
mask_labels = jax.jit(point_ops.mask_labels)
place_in_boxes = jax.jit(point_ops.place_in_boxes)
grid_points = jax.jit(point_ops.grid_points, static_argnums=0)
important_points = jax.jit(point_ops.important_points, static_argnames=("num", "num_uncertain"))

# The forms of the gradient: on CPU, and elsewhere.
FORMS = {"in turn": point_ops._spread_in_turn, "sorted": point_ops._spread_sorted}


def scene(seed=0, maps=3, height=5, width=7, channels=2, num=150):
    """Maps and points on them, some beyond their borders and some on them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.3, 1.3, (num, 2)) * [width, height]
    points[:20] = np.round(points[:20] * 2) / 2
    return rng.normal(size=(maps, height, width, channels)), rng.integers(0, maps, num), points


def by_grid_sample(maps, at, points):
    """PyTorch's samples, and the gradient of the maps given that of the samples."""
    import torch

    tensor = torch.tensor(maps.transpose(0, 3, 1, 2), requires_grad=True)
    grid = torch.tensor(2 * points / [maps.shape[2], maps.shape[1]] - 1)[:, None, None]
    sampled = torch.nn.functional.grid_sample(tensor[torch.tensor(at)], grid, align_corners=False)[..., 0, 0]

    def gradient(of_sampled):
        return (
            torch.autograd.grad(sampled, tensor, torch.tensor(of_sampled), retain_graph=True)[0]
            .numpy()
            .transpose(0, 2, 3, 1)
        )

    return sampled.detach().numpy(), gradient


def test_samples_and_both_forms_of_their_gradient_are_those_of_grid_sample(torchvision):
    maps, at, points = scene()
    expected, gradient = by_grid_sample(maps, at, points)
    weights = np.random.default_rng(1).normal(size=expected.shape)
    with jax.enable_x64(True):
        sampled, pull = jax.vjp(lambda maps: sample_points(maps, jnp.array(at), jnp.array(points)), maps)
        np.testing.assert_allclose(sampled, expected, atol=1e-14)
        np.testing.assert_allclose(pull(jnp.array(weights))[0], gradient(weights), atol=1e-13)
        taps = point_ops._taps(maps.shape[:3], jnp.array(at), jnp.array(points))
        for name, form in FORMS.items():
            found = jax.jit(functools.partial(form, maps.shape))(taps, jnp.array(weights))
            np.testing.assert_allclose(found, gradient(weights), atol=1e-13, err_msg=name)


def test_samples_are_interpolated_between_centres_and_to_zero_beyond_the_border():
    maps, at, points = scene(2)
    sampled = sample_points(jnp.array(maps, jnp.float32), jnp.array(at), jnp.array(points, jnp.float32))
    for index, point, values in zip(at, points, sampled, strict=True):
        for channel, value in enumerate(values):
            image = np.pad(maps[index, ..., channel], 1)
            exact = ndimage.map_coordinates(image, point[::-1, None] + 0.5, order=1, mode="grid-constant")
            np.testing.assert_allclose(value, exact[0], atol=1e-5)


def test_no_gradient_for_gpu_is_added_in_any_order():
    maps, at, points = (jnp.array(x) for x in scene())

    def total(maps):
        return jnp.sum(sample_points(maps, at, points) ** 2)

    program = jax.jit(jax.grad(total)).trace(maps.astype(jnp.float32)).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.sort" in program
    assert "scatter" not in program


def test_half_precision_is_summed_in_float32():
    maps, at, points = (jnp.array(x) for x in scene())
    rounded = maps.astype(jnp.bfloat16)
    sampled = sample_points(rounded, at, points)
    exact = sample_points(rounded.astype(jnp.float32), at, points)
    assert sampled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(sampled, exact.astype(jnp.bfloat16))


def test_a_grid_inside_the_map_is_roi_align_with_one_sample():
    features = np.random.default_rng(3).normal(size=(20, 24, 3)).astype(np.float32)
    boxes = jnp.array([[8.0, 9.0, 60.0, 70.0], [20.0, 4.0, 33.0, 50.0]])
    points = jnp.broadcast_to(grid_points(7), (2, 49, 2))
    at = place_in_boxes(points, boxes) / 4
    sampled = sample_points(jnp.array(features[None]), jnp.zeros(98, jnp.int32), at.reshape(-1, 2))
    exact = ops.roi_align(jnp.array(features), boxes, 0.25, ops.RoIGrid(7, sampling_ratio=1))
    np.testing.assert_allclose(sampled.reshape(exact.shape), exact, atol=1e-5)


def test_coarse_masks_are_sampled_as_maps_are():
    rng = np.random.default_rng(4)
    coarse, points = rng.normal(size=(3, 2, 7, 7)), rng.uniform(-0.1, 1.1, (3, 30, 2))
    with jax.enable_x64(True):
        sampled = sample_coarse(jnp.array(coarse), jnp.array(points))
        maps = jnp.array(coarse.transpose(0, 2, 3, 1))
        exact = sample_points(maps, jnp.repeat(jnp.arange(3), 30), jnp.array(points.reshape(-1, 2) * 7))
    np.testing.assert_allclose(sampled.reshape(90, 2), exact, atol=1e-14)


@pytest.mark.parametrize("region", [(0.0, 0.0, 40.0, 30.0), (4.0, 6.0, 24.0, 21.0)])
def test_labels_are_the_interpolated_coverage(region):
    """Of a bitmap of one cell a pixel, and of a grid over a part of the image."""
    rng = np.random.default_rng(5)
    masks = rng.integers(0, 256, (4, 30, 40), np.uint8)
    points, gt_index = rng.uniform(-3, 45, (5, 60, 2)).astype(np.float32), np.array([2, 0, 3, 3, 1])
    regions = jnp.tile(jnp.array(region), (4, 1))
    labels = mask_labels(jnp.array(masks), regions, jnp.array(points), jnp.array(gt_index))
    corner, sides = np.array(region[:2]), np.array(region[2:]) - region[:2]
    for index, of_roi, ours in zip(gt_index, points, labels, strict=True):
        cells = (of_roi - corner) / sides * [40, 30] - 0.5
        exact = ndimage.map_coordinates(masks[index] / 255, cells.T[::-1], order=1, mode="grid-constant")
        np.testing.assert_allclose(ours, exact, atol=1e-4)


def test_labels_of_padding_are_finite():
    masks, regions = jnp.zeros((2, 4, 4), jnp.uint8), jnp.zeros((2, 4))
    points = place_in_boxes(jnp.ones((3, 5, 2)), jnp.zeros((3, 4)))
    assert np.isfinite(mask_labels(masks, regions, points, jnp.zeros(3, jnp.int32))).all()


def test_important_points_are_the_most_uncertain_and_the_first_of_the_others():
    rng = np.random.default_rng(6)
    candidates, logits = rng.uniform(size=(3, 40, 2)).astype(np.float32), rng.normal(size=(3, 40)).astype(np.float32)
    found = important_points(jnp.array(candidates), jnp.array(logits), num=16, num_uncertain=12)
    for points, of_roi, values in zip(found, candidates, logits, strict=True):
        order = sorted(range(40), key=lambda i: abs(values[i]))
        chosen = order[:12] + sorted(order[12:])[:4]
        np.testing.assert_array_equal(points, of_roi[chosen])


@pytest.mark.parametrize("num_uncertain", [0, 16])
def test_all_points_may_be_uncertain_or_none(num_uncertain):
    candidates, logits = jnp.zeros((1, 40, 2)), jnp.arange(40.0)[None]
    assert important_points(candidates, logits, num=16, num_uncertain=num_uncertain).shape == (1, 16, 2)


@pytest.mark.parametrize("num", [160, 588])
def test_spread_points_fill_the_square_evenly(num):
    points = np.asarray(point_ops.spread_points(num))
    assert ((points >= 0) & (points < 1)).all()
    counts = np.histogram2d(*points.T, bins=4, range=[(0, 1), (0, 1)])[0]
    assert np.abs(counts - num / 16).max() <= 3  # a draw's would differ by up to twenty


def test_cells_are_numbered_row_by_row():
    np.testing.assert_allclose(grid_points(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    boxes = jnp.array([[10.0, 20.0, 30.0, 24.0]])
    inside = place_in_boxes(grid_points(2)[None], boxes)
    np.testing.assert_allclose(inside[0, 1], [25.0, 21.0])


def test_uncertain_cells_are_replaced_and_others_kept():
    logits = np.random.default_rng(7).normal(size=(2, 4, 4)).astype(np.float32)
    cells = point_ops.uncertain_cells(jnp.array(logits), 5)
    flat = logits.reshape(2, 16)
    np.testing.assert_array_equal(cells, np.argsort(np.abs(flat), axis=1)[:, :5])
    np.put_along_axis(flat, np.asarray(cells), 9.0, axis=1)
    found = point_ops.with_cells(jnp.array(logits), cells, jnp.full((2, 5), 9.0))
    np.testing.assert_array_equal(found, flat.reshape(2, 4, 4))
    assert point_ops.uncertain_cells(jnp.array(logits), 99).shape == (2, 16)


def test_doubled_masks_are_interpolated_as_the_reference_does(torchvision):
    import torch

    logits = np.random.default_rng(8).normal(size=(2, 5, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(logits)[None], scale_factor=2, mode="bilinear")[0]
    np.testing.assert_allclose(point_ops.doubled(jnp.array(logits)), expected, atol=1e-6)
