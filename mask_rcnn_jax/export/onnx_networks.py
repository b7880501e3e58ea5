"""The primitives of networks as operations of ONNX: products, convolutions, pooling, RoIAlign."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jaxtyping import Array, Float

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_primitives import Form, output, reverse, unsupported
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig, roi_levels

# RoIAlign of one level, the same as ONNX's; it stands in a jaxpr to be translated and never runs in JAX.
_roi_align_p = Primitive("roi_align")


@_roi_align_p.def_abstract_eval
def _roi_align_shape(features: Any, rois: Any, *, output_size: int, **_: Any) -> ShapedArray:
    batch, channels = features.shape[0], features.shape[3]
    return ShapedArray((batch, rois.shape[1], output_size, output_size, channels), features.dtype)


def onnx_pool(
    config: RoIPoolerConfig,
    features: Mapping[str, Float[Array, "B _ _ C"]],
    strides: Mapping[str, int],
    rois: Float[Array, "B R 4"],
) -> Float[Array, "B R P P C"]:
    """`models.pooler.pool` by way of ONNX's own RoIAlign: neither form of ours, loop or dense products, is fast there.

    Every level pools all RoIs. Those of other levels become empty, which with adaptive sampling costs nothing. Other
    poolers are translated as they stand.
    """
    # Of RoIAlign's reductions, ONNX takes the maximum over other values than the references.
    if type(config) is not PoolerConfig or config.reduction == "max":
        return config.pool(features, strides, rois)
    levels = roi_levels(config, strides, rois)
    pooled = jnp.float32(0)
    for index, name in enumerate(config.features):
        here = levels == index
        of_level = _roi_align_p.bind(
            features[name].astype(jnp.float32),
            jnp.where(here[..., None], rois, 0.0),
            output_size=config.output_size,
            sampling_ratio=config.sampling_ratio,
            spatial_scale=1.0 / strides[name],
            aligned=config.aligned,
        )
        pooled = pooled + jnp.where(here[..., None, None, None], of_level, 0.0)
    return pooled


def _roi_align(graph: Graph, eqn: Any, features: Value, rois: Value) -> list[Value]:
    batch, num_rois = rois.shape[:2]
    (channels_first,) = graph.add("Transpose", [graph.full(features)], perm=[0, 3, 1, 2])
    (flat,) = graph.add("Reshape", [graph.full(rois), graph.ints([batch * num_rois, 4])])
    images = graph.ints([row for row in range(batch) for _ in range(num_rois)])
    side = eqn.params["output_size"]
    (pooled,) = graph.add(
        "RoiAlign",
        [channels_first, flat, images],
        output_height=side,
        output_width=side,
        sampling_ratio=eqn.params["sampling_ratio"],
        spatial_scale=eqn.params["spatial_scale"],
        coordinate_transformation_mode="half_pixel" if eqn.params["aligned"] else "output_half_pixel",
    )
    (channels_last,) = graph.add("Transpose", [pooled], perm=[0, 2, 3, 1])
    return [output(eqn, graph.add("Reshape", [channels_last, graph.ints(eqn.outvars[0].aval.shape)])[0])]


def _dot_general(graph: Graph, eqn: Any, left: Value, right: Value) -> list[Value]:
    """One batched product of matrices, after their axes are sorted into batch, rows, contracted, columns."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left_free = [i for i in range(len(left.shape)) if i not in (*left_batch, *left_sum)]
    right_free = [i for i in range(len(right.shape)) if i not in (*right_batch, *right_sum)]
    batch = [left.shape[i] for i in left_batch]
    rows, inner = (math.prod(left.shape[i] for i in axes) for axes in (left_free, left_sum))
    columns = math.prod(right.shape[i] for i in right_free)
    lead = [math.prod(batch)] if batch else []
    a = _ordered(graph, left, [*left_batch, *left_free, *left_sum], [*lead, rows, inner])
    b = _ordered(graph, right, [*right_batch, *right_sum, *right_free], [*lead, inner, columns])
    (product,) = graph.add("MatMul", [a, b])
    return [output(eqn, graph.add("Reshape", [product, graph.ints(eqn.outvars[0].aval.shape)])[0])]


def _ordered(graph: Graph, value: Value, order: Sequence[int], shape: Sequence[int]) -> str:
    name = graph.full(value)
    if list(order) != sorted(order):
        (name,) = graph.add("Transpose", [name], perm=[int(i) for i in order])
    return name if tuple(shape) == value.shape else graph.add("Reshape", [name, graph.ints(shape)])[0]


def _conv(graph: Graph, eqn: Any, images: Value, kernel: Value) -> list[Value]:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    transposed = set(params["lhs_dilation"]) != {1}
    if params["batch_group_count"] != 1 or (
        not transposed and any(side < 0 for pair in params["padding"] for side in pair)
    ):
        raise unsupported(eqn)
    (x,) = graph.add("Transpose", [graph.full(images)], perm=[int(i) for i in numbers.lhs_spec])
    if not transposed:
        (k,) = graph.add("Transpose", [graph.full(kernel)], perm=[int(i) for i in numbers.rhs_spec])
        (x,) = graph.add(
            "Conv",
            [x, k],
            strides=list(params["window_strides"]),
            dilations=list(params["rhs_dilation"]),
            pads=_pads(params["padding"]),
            group=params["feature_group_count"],
        )
    else:
        x = _transposed_conv(graph, eqn, x, kernel)
    back = [numbers.out_spec.index(i) for i in range(len(numbers.out_spec))]
    return [output(eqn, graph.add("Transpose", [x], perm=back)[0])]


def _transposed_conv(graph: Graph, eqn: Any, x: str, kernel: Value) -> str:
    """ONNX's own, whose kernel is the other way round, and whose padding is cut off what the whole kernel makes."""
    params = eqn.params
    outputs, inputs, *spatial = (int(i) for i in params["dimension_numbers"].rhs_spec)
    dilations, strides = list(params["rhs_dilation"]), list(params["lhs_dilation"])
    reach = [(kernel.shape[axis] - 1) * dilation for axis, dilation in zip(spatial, dilations, strict=True)]
    cut = [(side - low, side - high) for side, (low, high) in zip(reach, params["padding"], strict=True)]
    # A kernel smaller than its stride leaves zeros behind the last pixel, which are what ONNX calls output padding.
    behind = [max(0, -high) for _, high in cut]
    fits = all(low >= 0 for low, _ in cut) and all(side < stride for side, stride in zip(behind, strides, strict=True))
    if params["feature_group_count"] != 1 or set(params["window_strides"]) != {1} or not fits:
        raise unsupported(eqn)
    turned = graph.full(reverse(graph, kernel, spatial))
    (k,) = graph.add("Transpose", [turned], perm=[inputs, outputs, *spatial])
    pads = _pads([(low, max(0, high)) for low, high in cut])
    shape = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": behind}
    return graph.add("ConvTranspose", [x, k], **shape)[0]


def _pads(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [int(low) for low, _ in pairs] + [int(high) for _, high in pairs]


def _max_pool(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    params = eqn.params
    window, padding = params["window_dimensions"], params["padding"]
    plain = set(params["base_dilation"]) == set(params["window_dilation"]) == {1}
    if len(window) != 4 or (window[0], window[3]) != (1, 1) or not plain:
        raise unsupported(eqn)
    (x,) = graph.add("Transpose", [graph.full(value)], perm=[0, 3, 1, 2])
    (x,) = graph.add(
        "MaxPool",
        [x],
        kernel_shape=list(window[1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=_pads(padding[1:3]),
    )
    return [output(eqn, graph.add("Transpose", [x], perm=[0, 2, 3, 1])[0])]


def _sum_pool(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """A convolution of one channel with ones: of all axes that have no window, one batch is made."""
    params, rank = eqn.params, len(value.shape)
    window, padding, strides = params["window_dimensions"], params["padding"], params["window_strides"]
    spatial = [i for i in range(rank) if window[i] > 1 or strides[i] > 1 or any(padding[i])]
    order = [*(i for i in range(rank) if i not in spatial), *spatial]
    plain = set(params["base_dilation"]) == {1} and all(side >= 0 for pair in padding for side in pair)
    if not plain or len(spatial) not in (1, 2, 3) or value.dtype not in (np.float32, np.float64):
        raise unsupported(eqn)
    sides = [value.shape[i] for i in spatial]
    x = _ordered(graph, value, order, [math.prod(value.shape) // math.prod(sides), 1, *sides])
    (x,) = graph.add(
        "Conv",
        [x, graph.constant(np.ones((1, 1, *(window[i] for i in spatial)), value.dtype))],
        strides=[strides[i] for i in spatial],
        dilations=[params["window_dilation"][i] for i in spatial],
        pads=_pads([padding[i] for i in spatial]),
    )
    shape = eqn.outvars[0].aval.shape
    (x,) = graph.add("Reshape", [x, graph.ints(shape[i] for i in order)])
    return [output(eqn, graph.add("Transpose", [x], perm=[order.index(i) for i in range(rank)])[0])]


NETWORK_FORMS: dict[str, Form] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
    "roi_align": _roi_align,
}
