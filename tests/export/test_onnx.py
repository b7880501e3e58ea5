"""JAX's primitives as ONNX: the same results, operation by operation, and a clear refusal of what has no form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.resize import Preprocessing, preprocess
from mask_rcnn_jax.models import (
    ConvNeXtConfig,
    Feature,
    Inputs,
    MaskHeadConfig,
    MLPMaskHeadConfig,
    PoolerConfig,
    SimplePyramidConfig,
    SoftNMSConfig,
    SwinConfig,
    VGGConfig,
    ViTConfig,
)
from mask_rcnn_jax.ops import RoIGrid, multilevel_roi_align, nms, soft_nms
from mask_rcnn_jax.ops.nms import greedy_nms
from mask_rcnn_jax.ops.pooling.points import uncertain_cells, with_cells
from mask_rcnn_jax.ops.pooling.roi_pool import multilevel_roi_pool

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(2, 5, 3)).astype(np.float32)
INTEGERS = RNG.integers(-9, 9, (2, 5)).astype(np.int32)
TIES = RNG.integers(0, 4, (2, 40)).astype(np.float32)
BOOLS = RNG.uniform(size=(2, 5)) > 0.5
ROWS = np.array([[1, 0], [0, 0]], np.int32)
BOXES = (lambda corner: np.concatenate([corner, corner + 25], -1))(RNG.uniform(0, 60, (2, 300, 2)).astype(np.float32))
SCORES = RNG.integers(0, 50, (2, 300)).astype(np.float32)
IMAGES = RNG.normal(size=(2, 8, 7, 3)).astype(np.float32)
HALVES = np.array([*np.arange(-4, 4.5, 0.5), 0.49999997, -0.49999997, 8388609, -1e30, np.inf], np.float32)
ENDS = np.array([-np.inf, -200, -1, -0.99999994, -0.0, 0, 1e-30, 88, 3e38, np.inf, np.nan], np.float32)
ACTIVATIONS = (
    "softplus",
    "mish",
    "elu",
    "selu",
    "celu",
    "silu",
    "hard_swish",
    "log_sigmoid",
    "soft_sign",
    "squareplus",
)
MODES = ("edge", "reflect", "wrap", "symmetric")
WINDOW = ((1, 3, 2, 2), (1, 2, 1, 1), ((0, 0), (4, 0), (1, 2), (0, 1)), None, (1, 2, 1, 1))
KERNELS = [RNG.normal(size=(*sides, 3, 3)).astype(np.float32) for sides in ((3, 2), (2, 4), (1, 1))]
NHWC = ("NHWC", "HWIO", "NHWC")

TO_64 = Preprocessing(64, 64, (64, 64))
LONG = RNG.integers(0, 256, (1, 8000, 2, 3), np.uint8)
MAPS = [RNG.normal(size=(2, side, side, 3)).astype(np.float32) for side in (16, 8)]
LEVELS = RNG.integers(0, 2, (2, 300)).astype(np.int32)


def translated(function, *arguments: np.ndarray) -> onnx.ModelProto:
    """A function as an ONNX model, whose inputs are `in0`, `in1`, ..."""
    from mask_rcnn_jax.export.onnx_graph import Graph, Value, tensor_info
    from mask_rcnn_jax.export.to_onnx import OPSET, translate

    closed, shapes = jax.make_jaxpr(lambda *a: jax.tree.leaves(function(*a)), return_shape=True)(*arguments)
    graph = Graph()
    inputs = [Value(x.shape, x.shape, x.dtype, f"in{i}") for i, x in enumerate(arguments)]
    outputs = []
    for i, (value, shape) in enumerate(zip(translate(graph, closed, inputs), shapes, strict=True)):
        graph.nodes.append(onnx.helper.make_node("Identity", [graph.full(value)], [f"out{i}"]))
        outputs.append(tensor_info(f"out{i}", shape.dtype, shape.shape))
    proto = graph.proto("test", [tensor_info(x.name, x.dtype, x.shape) for x in inputs], outputs)
    return onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)


def through_onnx(function, *arguments: np.ndarray) -> list[np.ndarray]:
    """The results of a function that was translated, in ONNX Runtime."""
    return run(translated(function, *arguments), *arguments)


def run(model: onnx.ModelProto, *arguments: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = {f"in{i}": x for i, x in enumerate(arguments)}
    return session.run(None, {x.name: given[x.name] for x in session.get_inputs()})


def steps(limit):
    """Doublings until a number passes its own limit: a loop that `vmap` runs for rows of different lengths."""
    return jax.lax.while_loop(lambda s: s[0] < limit, lambda s: (s[0] * 2, s[1] + 1), (jnp.int32(1), jnp.int32(0)))


def resized(sizes):
    with jax.enable_x64(True):
        return jnp.floor(sizes.astype(jnp.float64) * (800 / 963) + 0.5).astype(jnp.int32)


def repeated(x):
    """Broadcast the second axis from 1 to 5, of which the graph makes no copies."""
    return jnp.broadcast_to(x[:, :1], (x.shape[0], 5, *x.shape[2:]))


def slices(x, starts):
    """Windows that begin where numbers say, some of them beyond the end."""
    rows = jax.lax.dynamic_slice(x, starts[: x.ndim], [2] * x.ndim)
    whole = jax.lax.dynamic_slice_in_dim(jnp.broadcast_to(x[:, :1], x.shape), starts[0], 1)
    return rows, x[starts[0]], x[..., starts[1]], whole, jax.lax.dynamic_slice_in_dim(x, starts[2], 3, axis=-1 % x.ndim)


def overwritten(x, starts):
    """Windows of zeros, some of which begin beyond the ends, and of booleans."""
    small = jax.lax.dynamic_update_slice(x, jnp.zeros((1, 3, 2)), starts)
    rows = jax.lax.dynamic_update_slice_in_dim(x > 0, x[:, :2] < 0, starts[0], 1)
    return small, rows, jax.lax.dynamic_update_slice(x, x * 2, starts), jax.lax.dynamic_update_slice(x, x[:0], starts)


def moved(x, place, start):
    return jax.lax.dynamic_update_index_in_dim(x, x[:, start], place, 1)


def halves(x):
    return x / 2, x[0] + FLOATS[1]


def convolutions(x):
    """Convolutions in groups, with strides and dilations, and transposed ones with small and large kernels."""
    one, two, three = KERNELS
    yield jax.lax.conv_general_dilated(x, one[:, :, :1, :3], (2, 1), "SAME", None, (1, 2), NHWC, 3)
    for kernel, strides in ((one, (2, 2)), (two, (2, 1)), (three, (3, 2))):
        yield jax.lax.conv_transpose(x, kernel, strides, "SAME")
        yield jax.lax.conv_transpose(x, kernel, strides, "VALID", (2, 2), transpose_kernel=True)


def drawn(build):
    """A network with parameters of NumPy's random numbers, for which nothing is compiled."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), state))


def vgg(images):
    return drawn(VGGConfig(depth=11, width=4).build)(images)


def recomputed_convnext(images):
    network = drawn(ConvNeXtConfig(depths=(1, 1, 1, 1), channels=(8, 8, 12, 16), layer_scale=0.5).build)
    network.set_attributes(recomputed=True, raise_if_not_found=False)
    return network(images)


def masks(features):
    """Softmax masks, and those of fully connected layers."""
    inputs, classes, valid = Inputs({"p2": Feature(3, 4)}, 3), jnp.array([[0, 2], [1, 3]]), jnp.ones((2, 2), bool)
    pooler = PoolerConfig(output_size=2, features=("p2",))
    configs = MaskHeadConfig(pooler, 1, 4, mask_loss="softmax"), MLPMaskHeadConfig(pooler, fc_channels=4, mask_size=3)
    return [drawn(lambda rngs, c=c: c.build(inputs, rngs))(features, classes, valid) for c in configs]


def highest_samples(a, b, rois, levels):
    return multilevel_roi_align((a, b), rois, levels, (0.25, 0.125), RoIGrid(2), "max")


def vitdet(images):
    vit = ViTConfig(channels=8, depth=2, heads=2, window=3, global_blocks=(1,), image_size=64, pretrained_size=48)
    return drawn(SimplePyramidConfig(vit, channels=4).build)(images)


def swin(images):
    config = SwinConfig(depths=(2, 1, 1, 1), channels=4, heads=(1, 2, 2, 4), window=3, out_features=("stage2",))
    return drawn(config.build)(images)


BRANCHES = [lambda x, k: x + k, lambda x, k: x, lambda x, k: x * INTEGERS.max()]

CASES = {
    "broadcast": (lambda x: x[:, None] * jnp.arange(4.0)[None, :, None, None] + x.sum(-1)[:, None, :, None], FLOATS),
    "select": (lambda b: (jnp.where(b, INTEGERS, -1), jnp.where(b, ~b, b), jnp.where(b[..., None], FLOATS, 0)), BOOLS),
    "integers": (lambda i: (i // 4, i % 4, jnp.sign(i), jax.lax.rem(i, jnp.int32(4)), -i, abs(i)), INTEGERS),
    "bits": (lambda i, b: (i & 6, i | 6, i ^ 6, ~i, b & ~b[0], b | b[0], b ^ b[0]), INTEGERS, BOOLS),
    "finite": (lambda x: jnp.isfinite(jnp.log(x)), FLOATS),
    "functions": (lambda x: (jax.nn.softmax(x), jax.nn.sigmoid(x), jnp.clip(x, 0, 1)), FLOATS),
    "powers": (lambda x: (jax.lax.rsqrt(x**2 + 1), x**3, jnp.sqrt(jnp.square(x)), jnp.exp(-x)), FLOATS),
    "logarithms": (lambda x: (jnp.log2(x), jnp.log2(abs(x)), jnp.log2(x[:, :1] * jnp.zeros((1, 5, 1)))), FLOATS),
    "levels": (lambda x: jnp.floor(jnp.log2(x)), 2.0 ** np.arange(-12, 13, dtype=np.float32)),
    "polynomial": (lambda x: (jnp.polyval(TIES[0], x / 4), jnp.polyval(x, x[0]), jnp.polyval(x[0], 0.5)), FLOATS),
    "polynomial of integers": (lambda i: (jnp.polyval(jnp.array([2, 0, -3]), i), jnp.polyval(i[:, 0], 7)), INTEGERS),
    "small numbers": (
        lambda x: (jnp.log1p(x), jnp.expm1(x), jnp.expm1(-x)),
        np.geomspace(1e-12, 40, 99, dtype=np.float32),
    ),
    "ends": (lambda x: (jnp.log1p(x), jnp.expm1(x), jax.lax.erfc(x), jax.lax.erf(x)), ENDS),
    "activations": (lambda x: [getattr(jax.nn, name)(x) for name in ACTIVATIONS], 5 * FLOATS),
    "error functions": (lambda x: (jax.nn.gelu(x, approximate=False), jax.lax.erf(x), jax.lax.erfc(x)), 9 * FLOATS),
    "angles": (lambda x: (jnp.sin(x), jnp.cos(x)), 9 * FLOATS),
    "rounding": (lambda x: [jax.lax.round(x, method) for method in jax.lax.RoundingMethod], HALVES),
    "barrier": (lambda x: jax.lax.optimization_barrier(x) ** 3, FLOATS),
    "float64": (resized, INTEGERS),
    "sort ties": (lambda t: (jnp.argsort(t, stable=True), jnp.argsort(-t, stable=True), jnp.sort(t)), TIES),
    "sort booleans": (lambda b: jnp.argsort(~b, axis=1, stable=True), BOOLS),
    "top_k ties": (lambda t: jax.lax.top_k(t, 7), TIES),
    "gather": (lambda x, r: (jax.vmap(lambda x, r: x[r])(x, r), x[:, r], x[0][r], x[r, r]), FLOATS, ROWS),
    "gather in rows of images": (jax.vmap(jax.vmap(lambda row: row[jnp.argsort(row)])), FLOATS),
    "gather at two places": (jax.vmap(lambda x, r: x[r, jnp.zeros_like(r)]), FLOATS, ROWS),
    "overwrite cells": (lambda x: with_cells(x, uncertain_cells(x, 4), jnp.ones((2, 4))), FLOATS[:2, :3, :3]),
    "overwrite": (lambda x: (x.at[:, 1:3].set(0.0), x.at[:, :2].set(1.0)), FLOATS),
    "reduce nothing": (lambda b: (b[:, :0].any(1), b[:, :0].all(1), INTEGERS[:, :0].sum(1) + b[:, 0]), BOOLS),
    "gather beyond the ends": (lambda x, i: (x[:, i], x[i, :, 0], x[0].at[i, 1].get(mode="clip")), FLOATS, INTEGERS),
    "take": (lambda x, r: (jnp.take(x, r - 1, 1), jnp.take(x, r * 9, 0), jnp.take(x > 0, r, 2)), FLOATS, ROWS),
    "take what is not there": (
        lambda i, r: (i.at[r * 5].get(mode="fill", fill_value=7), jnp.take(i, 9 * r)),
        INTEGERS,
        ROWS,
    ),
    "take along an axis": (
        lambda x, i: [jnp.take_along_axis(x, i[..., None] % 2, axis) for axis in range(3)],
        FLOATS,
        INTEGERS,
    ),
    "embedding": (lambda i: drawn(lambda rngs: nnx.Embed(10, 4, rngs=rngs))(i), abs(INTEGERS)),
    "slices": (slices, FLOATS, np.array([1, 9, -1], np.int32)),
    "slices by rows": (jax.vmap(slices, (0, None)), FLOATS, np.array([1, 9, -1], np.int32)),
    "overwritten windows": (overwritten, FLOATS, np.array([1, 9, -9], np.int32)),
    "overwritten by rows": (
        lambda x, i: jax.lax.fori_loop(0, 5, lambda k, x: moved(x, k, i[k]), x),
        FLOATS,
        INTEGERS[0] % 5,
    ),
    "slices of rows": (jax.vmap(slices), FLOATS, RNG.integers(-9, 9, (2, 3)).astype(np.int32)),
    "first of the least": (lambda t, b: (t.argmin(1), t.argmax(1), b.argmin(1), b.argmax(1)), TIES, BOOLS),
    "reduce": (lambda x: (x.max(1), x.min((0, 2)), (x > 0).all(-1), (x > 0).any(), x.argmax(1)), FLOATS),
    "sums": (lambda x: (x.sum((0, 2)), x.prod(1), x[:, :0].prod(1), jnp.cumsum(x, 1), jnp.mean(x)), FLOATS),
    "shapes": (lambda x: (x[:, ::2, ::-1], jnp.stack([x, x], 1), jnp.tile(x, 2), jnp.split(x, [2, 3], 1)), FLOATS),
    "unstack": (lambda x: ([jnp.unstack(x, axis=i) for i in range(-1, 2)], [*x[0, 0]], jnp.unstack(x[:0])), FLOATS),
    "unstack by rows": (jax.vmap(jnp.unstack), BOOLS),
    "unstack what is broadcast": (lambda x: [jnp.unstack(repeated(x), axis=axis) for axis in range(3)], FLOATS),
    "unstack constants": (lambda i: [i + x for x in (*jnp.unstack(INTEGERS), *jnp.unstack(repeated(ROWS)))], INTEGERS),
    "padding": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0))), FLOATS),
    "padding of edges": (lambda x: [jnp.pad(x, ((0, 0), (1, 2), (0, 1)), mode) for mode in MODES], FLOATS),
    "padding of nothing": (
        lambda x: (jnp.pad(x[:, :0], ((0, 0), (1, 2), (0, 0))), jnp.concatenate([x[:0], x])),
        FLOATS,
    ),
    "products": (lambda x: (jnp.einsum("bij,bkj->bik", x, x), jnp.einsum("bij,ckj->ibck", x, x)), FLOATS),
    "convolutions": (lambda x: [*convolutions(x)], IMAGES),
    "average pooling": (lambda x: (nnx.avg_pool(x, (3, 2), (2, 1), "SAME", False), nnx.avg_pool(x, (2, 2))), IMAGES),
    "sums of windows": (lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, *WINDOW), IMAGES),
    "cond": (lambda x: [jax.lax.cond(x[0, 0, 0] > limit, halves, lambda x: (x, x[0]), x) for limit in (-9, 9)], FLOATS),
    "switch": (
        lambda i: [jax.lax.switch(k, BRANCHES, i, 3) for k in (i[0, 0] - i[0, 0] + jnp.arange(-1, 4))],
        INTEGERS,
    ),
    "switch by rows": (jax.vmap(lambda k, x: jax.lax.switch(k, BRANCHES, x, 2)), np.array([5, 1], np.int32), FLOATS),
    "switch in a loop": (
        lambda x: jax.lax.fori_loop(0, 4, lambda k, x: jax.lax.switch(k, BRANCHES, x, k), x),
        INTEGERS,
    ),
    "cond of booleans": (lambda b: jax.lax.cond(b.any(), lambda b: (~b, b[0]), lambda b: (b, b[1]), b), BOOLS),
    "platforms": (lambda x: jax.lax.platform_dependent(x, cuda=jnp.sin, default=jnp.cos), FLOATS),
    "recomputed": (lambda x: jax.checkpoint(lambda x: jnp.sin(x) + TIES[0, 0])(x) + nnx.remat(jnp.cos)(x), FLOATS),
    "convnext": (recomputed_convnext, RNG.normal(size=(1, 64, 64, 3)).astype(np.float32)),
    "vitdet": (vitdet, RNG.normal(size=(1, 64, 96, 3)).astype(np.float32)),
    "swin": (swin, RNG.normal(size=(1, 48, 40, 3)).astype(np.float32)),
    "vgg": (vgg, RNG.normal(size=(1, 32, 48, 3)).astype(np.float32)),
    "while by rows": (jax.vmap(steps), np.array([3, 100, 0, 17], np.int32)),
    "while": (steps, np.array(50, np.int32)),
    "scan": (lambda x: jax.lax.scan(lambda c, row: (c + row.sum(), (row * c, c)), jnp.float32(0), x), FLOATS),
    "scan in reverse": (lambda x: jax.lax.scan(lambda c, r: (c + r, (r * c, c)), x[0], x, reverse=True), FLOATS[0]),
    "map": (lambda x: jax.lax.map(lambda row: row * 2, x.reshape(10, 3), batch_size=4), FLOATS),
    "large reduction": (lambda i: preprocess(TO_64, i, jnp.array([[8000, 2]])), LONG),
    "masks": (masks, RNG.normal(size=(2, 2, 2, 2, 3)).astype(np.float32)),
    "highest samples": (highest_samples, *MAPS, np.round(BOXES[:, :40]), LEVELS[:, :40]),
    "roi_pool": (lambda a, b, r, i: multilevel_roi_pool((a, b), r, i, (0.25, 0.125), 7), *MAPS, BOXES, LEVELS),
    "nms": (jax.vmap(lambda b, s: nms(b, s, s > 5, 0.4, 40)), BOXES, SCORES),
    "nms of classes": (
        jax.vmap(lambda b, s: nms(b, s, s > 5, 0.4, 40, (b[:, 0] * 7).astype(int) % 5)),
        BOXES,
        SCORES,
    ),
    "nms of the same boxes": (
        jax.vmap(lambda s: greedy_nms(jnp.asarray(BOXES[0, :256]), s > 9, np.float32(0.4), None, iou_threshold=0.4)),
        SCORES[:, :256],
    ),
    "nms of nothing": (lambda b: nms(b, b[:, 0], b[:, 0] < 0, 0.4, 9, b[:, 0].astype(int)), BOXES[0]),
    "soft nms": (
        jax.vmap(lambda b, s: soft_nms(b, s, s > 0.1, 40, **vars(SoftNMSConfig()))),
        BOXES,
        (SCORES / 50).astype(np.float32),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_jax(name):
    function, *arguments = CASES[name]
    expected = [np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(*arguments))]
    for ours, theirs in zip(through_onnx(function, *arguments), expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if theirs.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms_of_base_2_differ_in_the_last_digits_alone(dtype):
    numbers = np.geomspace(1e-12, 1e12, 999).astype(dtype)
    with jax.enable_x64(True):
        (ours,), theirs = through_onnx(jnp.log2, numbers), np.asarray(jax.jit(jnp.log2)(numbers))
    assert ours.dtype == theirs.dtype == dtype
    for expected in (theirs, np.log2(numbers.astype(np.float64)).astype(dtype)):
        np.testing.assert_array_max_ulp(ours, expected, maxulp=4)


@pytest.mark.parametrize(("function", "reference"), [(jnp.log1p, np.log1p), (jnp.expm1, np.expm1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_functions_near_zero_keep_the_digits_of_small_numbers(function, reference, sign):
    numbers = sign * np.geomspace(1e-30, 0.999, 999, dtype=np.float32)
    (ours,) = through_onnx(function, numbers)
    np.testing.assert_array_max_ulp(ours, reference(numbers.astype(np.float64)).astype(np.float32), maxulp=8)


def test_erfc_and_gelu_have_the_digits_of_a_number_near_1():
    numbers = np.linspace(-12, 12, 9999, dtype=np.float32)
    erfc, gelu = through_onnx(lambda x: (jax.lax.erfc(x), jax.nn.gelu(x, approximate=False)), numbers)
    np.testing.assert_allclose(erfc, [math.erfc(x) for x in numbers], rtol=0, atol=2e-7)
    expected = [x / 2 * math.erfc(-x / math.sqrt(2)) for x in numbers.astype(np.float64)]
    np.testing.assert_allclose(gelu, expected, rtol=3e-7, atol=2e-7)
    # Of large numbers the tails, which JAX has down to 1e-38, are lost: 4e-8 or less of erfc, 2e-7 or less of GELU.
    assert not erfc[numbers > 4].any()
    assert not gelu[numbers < -6].any()


REFUSED = {
    "erf_inv": jax.lax.erf_inv,
    "erf_inv in a branch": lambda x: jax.lax.cond(x[0, 0, 0] > 0, jax.lax.erf_inv, jnp.sin, x),
    "cond": lambda x: jax.lax.cond(x[0, 0, 0] > 0, lambda x: jax.debug.print("{}", x), lambda x: None, x),
    "reduce_window_sum": lambda x: jax.lax.reduce_window(x.astype(int), 0, jax.lax.add, (1, 2, 2), (1, 1, 1), "SAME"),
    "conv_general_dilated that cuts": lambda x: jax.lax.conv(x[None], x[None, :, :2, :2], (1, 1), [(-1, 0), (0, 0)]),
    "conv_general_dilated": lambda x: jax.lax.conv_transpose(x[None], KERNELS[0], (2, 2), [(5, 0), (0, 0)]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_without_a_form_is_named(name):
    with pytest.raises(UserError, match=f"no form yet of JAX's {name.split()[0]} "):
        through_onnx(REFUSED[name], FLOATS)


def test_types_without_a_form_are_refused():
    with jax.enable_x64(True), pytest.raises(UserError, match="no form yet of JAX's erfc "):
        through_onnx(jax.lax.erfc, FLOATS.astype(np.float64))
    with pytest.raises(UserError, match="no form yet of arrays of bfloat16"):
        through_onnx(lambda x: x.astype(jnp.bfloat16) + 1, FLOATS)
