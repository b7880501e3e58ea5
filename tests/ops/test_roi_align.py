import json
import math
import struct
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mask_rcnn_jax import ops
from mask_rcnn_jax.ops import RoIGrid, assign_levels
from mask_rcnn_jax.ops.cpu import roi_align_taps, roi_align_windows
from mask_rcnn_jax.ops.gpu import roi_align_matrix

SCALES = (1 / 4, 1 / 8)

roi_align = jax.jit(ops.roi_align, static_argnames=("spatial_scale", "grid", "reduction"))
multilevel_roi_align = jax.jit(ops.multilevel_roi_align, static_argnames=("spatial_scales", "grid", "reduction"))


def on_one_level(features, rois, scale, grid):
    return multilevel_roi_align([features], rois, jnp.zeros(len(rois), jnp.int32), (scale,), grid)


FORMS = [roi_align, on_one_level]


def bilinear(features, y, x):
    height, width, _ = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = features[top, left] * (1 - dx) + features[top, right] * dx
    below = features[bottom, left] * (1 - dx) + features[bottom, right] * dx
    return above * (1 - dy) + below * dy


def roi_align_by_loops(features, rois, scale, size, sampling_ratio, aligned, reduction="average"):
    out = np.zeros((len(rois), size, size, features.shape[2]))
    for r, roi in enumerate(rois.astype(np.float64) * scale - (0.5 if aligned else 0.0)):
        x1, y1, x2, y2 = roi
        if not aligned:
            x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        bin_h, bin_w = (y2 - y1) / size, (x2 - x1) / size
        num_y, num_x = sampling_ratio or math.ceil(bin_h - 1e-6), sampling_ratio or math.ceil(bin_w - 1e-6)
        if num_y * num_x == 0:
            continue
        for i in range(size):
            for j in range(size):
                samples = [
                    bilinear(features, y1 + (i + (a + 0.5) / num_y) * bin_h, x1 + (j + (b + 0.5) / num_x) * bin_w)
                    for a in range(num_y)
                    for b in range(num_x)
                ]
                out[r, i, j] = np.mean(samples, axis=0) if reduction == "average" else np.max(samples, axis=0)
    return out


def pyramid(seed=0, images=None):
    rng = np.random.default_rng(seed)
    lead = () if images is None else (images,)
    return [jnp.array(rng.normal(size=(*lead, *shape, 3)), jnp.float32) for shape in ((24, 36), (12, 18))]


def random_rois(seed=0, num=10, width=144.0, height=96.0, images=None):
    """Some RoIs of all sizes, the whole image, one on its far corner, and a padded one."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (*(() if images is None else (images,)), num, 2, 2)) * [width, height]
    rois = np.concatenate([corners.min(-2), corners.max(-2)], axis=-1).astype(np.float32)
    rois[..., 0, :] = [0, 0, width, height]
    rois[..., 1, :] = [width - 2, height - 3, width, height]
    rois[..., 2, :] = 0
    return jnp.array(rois)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("aligned", "first_row"), [(True, [4.5, 5, 5.5, 6]), (False, [7.5, 8, 8.5, 9])])
def test_golden(form, aligned, first_row):
    # detectron2/tests/layers/test_roi_align.py: a 5x5 arange.
    features = jnp.arange(25.0).reshape(5, 5, 1)
    pooled = form(features, jnp.array([[1.0, 1, 3, 3]]), 1.0, RoIGrid(4, aligned=aligned))
    expected = np.add.outer(2.5 * np.arange(4), first_row)
    np.testing.assert_allclose(pooled[0, :, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_agrees_with_loops(form, sampling_ratio, aligned):
    features, rois = pyramid()[0], random_rois()
    pooled = form(features, rois, SCALES[0], RoIGrid(3, sampling_ratio, aligned))
    expected = roi_align_by_loops(np.array(features), np.array(rois), SCALES[0], 3, sampling_ratio, aligned)
    np.testing.assert_allclose(pooled, expected, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rois_beyond_the_map_agree_with_loops(form):
    # No longer than the map, as the plain form demands of adaptive sampling.
    rois = jnp.array([[-30.0, -20, 40, 50], [100, 60, 190, 130], [-300, -300, -200, -250], [-3, -4, 3, 2]])
    features = pyramid()[0]
    expected = roi_align_by_loops(np.array(features), np.array(rois), SCALES[0], 3, 0, True)
    np.testing.assert_allclose(form(features, rois, SCALES[0], RoIGrid(3)), expected, atol=2e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_maximum_agrees_with_loops(sampling_ratio):
    features, rois, levels = pyramid(), random_rois(), jnp.arange(10) % 2
    pooled = multilevel_roi_align(features, rois, levels, SCALES, RoIGrid(3, sampling_ratio), "max")
    for index, scale in enumerate(SCALES):
        expected = roi_align_by_loops(np.array(features[index]), np.array(rois), scale, 3, sampling_ratio, True, "max")
        np.testing.assert_allclose(pooled[index::2], expected[index::2], atol=2e-5)


def test_agrees_with_torchvision(torchvision):
    torch = pytest.importorskip("torch")
    features, rois = pyramid()[0], random_rois()
    channels_first = torch.tensor(np.array(features).transpose(2, 0, 1)[None])
    for aligned in (True, False):
        for sampling_ratio in (0, 2):
            pooled = on_one_level(features, rois, SCALES[0], RoIGrid(7, sampling_ratio, aligned))
            expected = torchvision.ops.roi_align(
                channels_first, [torch.tensor(np.array(rois))], 7, SCALES[0], sampling_ratio or -1, aligned
            )
            np.testing.assert_allclose(pooled.transpose(0, 3, 1, 2), expected, atol=2e-5)


def load_golden(path, *names):
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        arrays = []
        for name in names:
            file.seek(start + header[name]["data_offsets"][0])
            values = np.fromfile(file, np.float32, math.prod(header[name]["shape"]))
            arrays.append(jnp.array(values.reshape(header[name]["shape"])))
    return arrays


def test_agrees_with_detectron2_on_a_pyramid(shared):
    golden = shared / "golden" / "detectron2" / "fpn.safetensors"
    names = ["feature_p2", "feature_p3", "feature_p4", "feature_p5"]
    *features, proposals, detected, for_boxes, for_masks = load_golden(
        golden, *names, "proposals_0", "net_boxes_0", "box_pooler_first", "mask_pooler_first"
    )
    features = [level[0].transpose(1, 2, 0) for level in features]
    for rois, expected in ((proposals, for_boxes), (detected, for_masks)):
        rois = rois[: len(expected)]
        scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
        pooled = multilevel_roi_align(features, rois, assign_levels(rois, 4), scales, RoIGrid(expected.shape[-1]))
        np.testing.assert_allclose(pooled.transpose(0, 3, 1, 2), expected, atol=1e-4)


def test_agrees_with_detectron2_on_one_level(shared):
    golden = shared / "golden" / "detectron2" / "c4.safetensors"
    features, proposals, expected = load_golden(golden, "feature_res4", "proposals_0", "pooler_first")
    pooled = on_one_level(features[0].transpose(1, 2, 0), proposals[:2], 1 / 16, RoIGrid(14))
    np.testing.assert_allclose(pooled.transpose(0, 3, 1, 2), expected, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_agrees_with_the_plain_form(sampling_ratio):
    features, rois, levels = pyramid(), random_rois(), jnp.arange(10) % 2
    weights = jnp.array(np.random.default_rng(0).normal(size=(10, 3, 3, 3)), jnp.float32)
    grid = RoIGrid(3, sampling_ratio)

    def plain(features):
        every = [roi_align(level, rois, scale, grid) for level, scale in zip(features, SCALES, strict=True)]
        return jnp.sum(jnp.where((levels == 0)[:, None, None, None], *every) * weights)

    def fast(features):
        return jnp.sum(multilevel_roi_align(features, rois, levels, SCALES, grid) * weights)

    for expected, gradient in zip(jax.grad(plain)(features), jax.grad(fast)(features), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "bound"), [pytest.param("float32", 2e-5, marks=pytest.mark.slow), ("float64", 1e-12)]
)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_loops_and_matrix_agree(sampling_ratio, dtype, bound):
    """The forms behind `multilevel_roi_align`, of which a platform only ever runs one."""
    with jax.enable_x64(dtype == "float64"):
        features = tuple(level.astype(dtype) for level in pyramid(images=2))
        rois, levels = random_rois(images=2).astype(dtype), jnp.tile(jnp.arange(10, dtype=jnp.int32) % 2, (2, 1))
        gradient = jnp.array(np.random.default_rng(0).normal(size=(2, 10, 3, 3, 3)), dtype)
        grid = RoIGrid(3, sampling_ratio)
        cells = grid.to_cells(rois, jnp.array(SCALES, dtype)[levels][..., None])
        for looped, matrix, operands in (
            (roi_align_taps.forward, roi_align_matrix.forward, ()),
            (roi_align_windows.forward, roi_align_matrix.forward, ()),
            (roi_align_windows.backward, roi_align_matrix.backward, (gradient,)),
        ):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=bound),
                jax.jit(partial(looped, grid))(features, cells, levels, *operands),
                jax.jit(jax.vmap(partial(matrix, grid)))(features, cells, levels, *operands),
            )


def test_matrix_form_in_chunks(monkeypatch):
    features, rois, levels = tuple(pyramid()), random_rois(), jnp.arange(10) % 2
    grid = RoIGrid(3)
    cells = grid.to_cells(rois, jnp.array(SCALES)[levels][:, None])
    whole = jax.jit(partial(roi_align_matrix.forward, grid))(features, cells, levels)
    monkeypatch.setattr(roi_align_matrix, "_CHUNK_BYTES", 4 * 3 * 36 * 3 * 4)  # 4 RoIs of the first level
    in_chunks = jax.jit(partial(roi_align_matrix.forward, grid))(features, cells, levels)
    np.testing.assert_allclose(in_chunks, whole, atol=1e-6)


def test_several_images_vmap_and_shard_map_agree_with_one_image_at_a_time():
    images = 8
    features, rois = pyramid(images=images), random_rois(images=images)

    def loss(scale, features, rois):
        levels = assign_levels(rois, 2, canonical_size=60.0, canonical_level=3)
        scaled = [scale * level for level in features]
        return jnp.sum(multilevel_roi_align(scaled, rois, levels, SCALES, RoIGrid(3)) ** 2)

    def mean_loss(scale, features, rois):
        return loss(scale, features, rois) / len(rois)

    def mean_loss_over_mesh(scale, features, rois):
        return jax.lax.pmean(mean_loss(scale, features, rois), "data")

    scale = jnp.float32(2)
    one_image = jax.jit(loss)
    one_by_one = np.mean([one_image(scale, [level[i] for level in features], rois[i]) for i in range(images)])
    value, gradients = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1)))(scale, features, rois)
    np.testing.assert_allclose(value, one_by_one, rtol=1e-5)
    mapped = jax.jit(jax.vmap(loss, in_axes=(None, 0, 0)))(scale, features, rois)
    np.testing.assert_allclose(np.mean(mapped), one_by_one, rtol=1e-5)

    devices = np.array(jax.devices())
    if images % len(devices):
        pytest.skip(f"{len(devices)} devices do not divide {images} images")
    data, everywhere = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        jax.value_and_grad(mean_loss_over_mesh, argnums=(0, 1)),
        mesh=Mesh(devices, ("data",)),
        in_specs=(everywhere, data, data),
        out_specs=(everywhere, (everywhere, data)),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.jit(sharded)(scale, features, rois),
        (value, gradients),
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_padding_changes_nothing(sampling_ratio):
    features, rois, levels = pyramid(), random_rois(), jnp.arange(10) % 2

    def pool(features, rois, levels):
        return multilevel_roi_align(features, rois, levels, SCALES, RoIGrid(3, sampling_ratio))

    padded_rois, padded_levels = jnp.pad(rois, ((0, 4), (0, 0))), jnp.pad(levels, (0, 4))
    pooled, transpose = jax.vjp(lambda features: pool(features, padded_rois, padded_levels), features)
    expected, expected_transpose = jax.vjp(lambda features: pool(features, rois, levels), features)
    np.testing.assert_array_equal(pooled[:10], expected)
    assert np.isfinite(pooled).all()
    # A loss masks padded rows, so zero comes back from them.
    gradients = transpose(jnp.pad(expected, ((0, 4), (0, 0), (0, 0), (0, 0))))
    jax.tree.map(np.testing.assert_array_equal, gradients, expected_transpose(expected))


def test_padded_rois_of_adaptive_sampling_are_zero():
    assert not multilevel_roi_align(pyramid(), jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32), SCALES, RoIGrid(3)).any()


def test_no_gradient_flows_to_rois():
    rois = random_rois()
    gradient = jax.grad(lambda rois: on_one_level(pyramid()[0], rois, SCALES[0], RoIGrid(3)).sum())(rois)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(rois))


def test_bfloat16_features_are_accumulated_in_float32():
    features, rois, levels = [level.astype(jnp.bfloat16) for level in pyramid()], random_rois(), jnp.arange(10) % 2

    def pool(features):
        return multilevel_roi_align(features, rois, levels, SCALES, RoIGrid(3))

    pooled, exact = pool(features), pool([level.astype(jnp.float32) for level in features])
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, exact.astype(jnp.bfloat16))
    gradients = jax.grad(lambda features: pool(features).astype(jnp.float32).sum())(features)
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients)


def test_without_rois():
    pooled = multilevel_roi_align(pyramid(), jnp.zeros((0, 4)), jnp.zeros(0, jnp.int32), SCALES, RoIGrid(3))
    assert pooled.shape == (0, 3, 3, 3)


def test_levels_golden():
    # FPN, equation 1: 224 pixels go to level 4, half of that one lower; clamped to 2..5.
    sides = [10.0, 111, 112, 223, 224, 447, 448, 5000]
    rois = jnp.array([[0.0, 0, side, side] for side in sides] + [[0.0] * 4])
    for convention in ("detectron2", "torchvision"):
        levels = assign_levels(rois, 4, convention=convention)
        np.testing.assert_array_equal(levels, [0, 0, 1, 1, 2, 2, 3, 3, 0])


def test_level_conventions_differ_by_their_epsilon():
    # 1e-6 relative below 224: torchvision's epsilon, outside the logarithm, carries it up; Detectron2's does not.
    side = 224 * (1 - 5e-7)
    roi = jnp.array([[0.0, 0, side, side]])
    assert assign_levels(roi, 4, convention="detectron2")[0] == 1
    assert assign_levels(roi, 4, convention="torchvision")[0] == 2
