"""The forms that are fast in other runtimes: channels first, RoIs of their own level, and RoIs that are not padding."""

import functools
import itertools
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import PoolerConfig
from mask_rcnn_jax.models.layers import ConvNorm, Kernel, max_pool, over_rois
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.ops import nms
from tests.export.models import exportable, pictures
from tests.export.test_onnx import BOXES, SCORES, drawn, run, through_onnx, translated

onnx = pytest.importorskip("onnx")
RNG = np.random.default_rng(0)
BOUNDS = {"valid": 0, "classes": 0, "boxes": 0.05, "scores": 5e-4, "masks": 2e-4, "keypoints": 0.05}


def operations(model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def pyramid(convs, x):
    """A block with a shortcut, and the pyramid's addition, as in the networks; the whole and half of it are read."""
    x = jax.nn.relu(convs[0](x))
    x = jax.nn.relu(convs[1](x) + x)
    half = convs[2](jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))[:, 1:, 1:]
    small = max_pool(x)[:, : half.shape[1], : half.shape[2]]
    return x[:, :6, :8] + jnp.concatenate([half, small], axis=1)[:, :3, :4].repeat(2, axis=1).repeat(2, axis=2)


def test_what_lies_between_convolutions_stays_channels_first():
    image = RNG.normal(size=(2, 11, 9, 3)).astype(np.float32)
    kernels = Kernel(3), Kernel(1), Kernel(3, stride=2)
    convs = [ConvNorm(3, 3, kernel, norm=NormConfig(), rngs=nnx.Rngs(0)) for kernel in kernels]
    model = translated(functools.partial(pyramid, convs), image)
    counted = operations(model)
    assert (counted["Transpose"], counted["Conv"], counted["Resize"]) == (2, 3, 2)  # the first and the last
    assert not counted.keys() & {"Sqrt", "Reciprocal", "Div", "Expand"}  # norms are one product and one sum
    (ours,) = run(model, image)
    np.testing.assert_allclose(ours, pyramid(convs, jnp.asarray(image)), rtol=2e-5, atol=2e-5)


def test_a_layer_on_flattened_maps_has_its_weights_in_their_order():
    x, kernel = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32), RNG.normal(size=(3, 3, 3, 6)).astype(np.float32)
    weights = RNG.normal(size=(120, 7)).astype(np.float32)

    def function(x):
        maps = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return maps.reshape(2, -1) @ weights

    model = translated(function, x)
    assert operations(model)["Transpose"] == 1  # of what comes in
    np.testing.assert_allclose(run(model, x)[0], function(x), rtol=1e-4, atol=1e-4)


def test_weights_that_are_read_twice_are_stored_once():
    conv = drawn(lambda rngs: ConvNorm(3, 5, Kernel(3), norm=NormConfig(kind="none"), rngs=rngs))
    images = [np.ones((1, side, side, 3), np.float32) for side in (8, 4)]
    model = translated(lambda a, b: (conv(a), conv(b)), *images)
    assert [tuple(x.dims) for x in model.graph.initializer].count((5, 3, 3, 3)) == 1


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_reshapes_of_what_was_transposed(order):
    """Axes that are joined and divided, with sides of 1 between them."""
    x = np.arange(48, dtype=np.float32).reshape(4, 1, 6, 2)

    def function(x):
        x = x.transpose(order) + 1
        first, second, third, fourth = x.shape
        return (
            x.reshape(first * second, third, fourth),
            x.reshape(first, second * third * fourth),
            x.reshape(1, first, second, 1, third * fourth),
            x[:, :, None, ..., None],
            x.reshape(first, second, third, fourth // 2 if fourth % 2 == 0 else 1, -1)[..., None],
            x.squeeze().sum(1),
            x.max(2),
            jnp.concatenate([x, x * 2], axis=1).repeat(2, axis=2),
            jnp.where(x > 9, x.transpose(3, 2, 1, 0).transpose(3, 2, 1, 0), jnp.arange(fourth, dtype=x.dtype)),
        )

    for ours, theirs in zip(through_onnx(function, x), function(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rois_of_a_pyramid_are_pooled_from_their_own_levels():
    """Also where a level has none."""
    from mask_rcnn_jax.export.onnx_rois import onnx_pool

    config = PoolerConfig(output_size=3, features=("p2", "p3", "p4"), canonical_size=32.0, canonical_level=3)
    strides = {"p2": 4, "p3": 8, "p4": 16}
    maps = [RNG.normal(size=(2, 64 // stride, 64 // stride, 5)).astype(np.float32) for stride in strides.values()]
    corners, sides = RNG.uniform(0, 30, (2, 9, 2)), RNG.choice([10.0, 90.0], (2, 9, 1))
    rois = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)

    def pooled(pool, rois, *maps):
        rois, maps = jnp.asarray(rois), [jnp.asarray(level) for level in maps]
        return pool(config, dict(zip(strides, maps, strict=True)), strides, rois)

    (ours,) = through_onnx(lambda *inputs: pooled(onnx_pool, *inputs), rois, *maps)
    theirs = pooled(lambda config, *inputs: config.pool(*inputs), rois, *maps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_suppression_is_onnxs_own():
    model = translated(jax.vmap(lambda b, s: nms(b, s, s > 5, 0.4, 40)), BOXES, SCORES)
    counted = operations(model)
    assert (counted["NonMaxSuppression"], counted["Loop"]) == (1, 0)


def test_heads_leave_out_rois_that_are_padding():
    """Chunks without a valid RoI would be no numbers."""
    valid = np.arange(24)[None] < 5
    features = np.where(valid[..., None, None, None], 1.0, np.nan) * np.ones((1, 24, 14, 14, 2))

    def sums(x):
        return x.sum((1, 2, 3))

    def function(x, valid):
        return over_rois(nnx.Dict(), sums, valid, x)

    (found,) = through_onnx(function, features.astype(np.float32), valid)
    np.testing.assert_array_equal(found[0, :5], 14 * 14 * 2)
    assert np.isnan(found[0, 5:8]).all()  # of the same chunk as a valid one
    np.testing.assert_array_equal(found[0, 8:], 0)


@pytest.mark.parametrize("name", ["torchvision", "fpn"])
def test_openvino_finds_what_onnx_runtime_finds(name, tmp_path):
    """Within the bounds of the conformance tests, in images that need no resizing by Pillow's rules: OpenVINO computes
    its coefficients, which are float64, in float32.
    """
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO, which no extra brings")
    from mask_rcnn_jax.export.runtime import load
    from mask_rcnn_jax.export.to_onnx import export_onnx

    path = tmp_path / "model.onnx"
    export_onnx(exportable(name), path)
    model = load(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def call(images, sizes):
        results = compiled({"images": images, "sizes": sizes})
        return {name: array for port, array in results.items() for name in port.names if name in BOUNDS}

    images = pictures() if name == "torchvision" else [image[:64, :96] for image in pictures()[1:3]]
    for found, expected in zip(replace(model, call=call).detect(images), model.detect(images), strict=True):
        assert found.keys() == expected.keys()
        assert len(expected["boxes"]) > 0
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=BOUNDS[name], err_msg=name)
