"""The primitives of networks as operations of ONNX: products, convolutions, pooling."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_primitives import Form, output, unsupported
from mask_rcnn_jax.export.onnx_shapes import reverse

CHANNELS_FIRST = (0, 3, 1, 2)  # the order of axes in which ONNX has images


def _dot_general(graph: Graph, eqn: Any, left: Value, right: Value) -> list[Value]:
    """One batched product of matrices, after their axes are sorted into batch, rows, contracted, columns."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left_free = [i for i in range(len(left.shape)) if i not in (*left_batch, *left_sum)]
    right_free = [i for i in range(len(right.shape)) if i not in (*right_batch, *right_sum)]
    batch = [left.shape[i] for i in left_batch]
    rows, inner = (math.prod(left.shape[i] for i in axes) for axes in (left_free, left_sum))
    columns = math.prod(right.shape[i] for i in right_free)
    lead = [math.prod(batch)] if batch else []
    shape, order = eqn.outvars[0].aval.shape, [*range(len(batch) + len(left_free) + len(right_free))]
    if matrices := _of_flattened(graph, eqn, left, right):
        a, b = matrices
    elif left.constant is None or batch:
        a = _ordered(graph, left, [*left_batch, *left_free, *left_sum], [*lead, rows, inner])
        b = _ordered(graph, right, [*right_batch, *right_sum, *right_free], [*lead, inner, columns])
    else:  # weights on the right, as the product of the transposed: what is many rows stays rows
        order = [*order[len(left_free) :], *order[: len(left_free)]]
        a = _ordered(graph, right, [*right_free, *right_sum], [columns, inner])
        b = _ordered(graph, left, [*left_sum, *left_free], [inner, rows])
    (product,) = graph.add("MatMul", [a, b])
    (product,) = graph.add("Reshape", [product, graph.ints(shape[axis] for axis in order)])
    return [output(eqn, product, order=order)]


def _of_flattened(graph: Graph, eqn: Any, left: Value, right: Value) -> tuple[str, str] | None:
    """Return the matrices of a fully connected layer on maps, whose weights are put into the order of the maps' axes
    in place of the maps into that of the weights; None for other products.
    """
    maps, weights = left.flattened, right.constant
    matrices = len(left.shape) == 2 and eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    if maps is None or weights is None or not matrices or weights.shape != right.shape:
        return None
    axes = range(len(maps.shape))
    first = next((i for i in axes if math.prod(maps.shape[i:]) <= left.shape[1]), len(axes))
    own = [axis - first for axis in maps.axes if axis >= first]
    if maps.axes[:first] != tuple(range(first)) or math.prod(maps.held[first:]) != left.shape[1]:
        return None
    weights = weights.reshape(*maps.shape[first:], -1).transpose(*own, len(own)).reshape(weights.shape)
    return graph.add("Reshape", [maps.name, graph.ints(left.shape)])[0], graph.constant(weights)


def _ordered(graph: Graph, value: Value, order: Sequence[int], shape: Sequence[int]) -> str:
    name = graph.ordered(graph.whole(value), order)
    return name if tuple(shape) == value.shape else graph.add("Reshape", [name, graph.ints(shape)])[0]


def _conv(graph: Graph, eqn: Any, images: Value, kernel: Value) -> list[Value]:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    transposed = set(params["lhs_dilation"]) != {1}
    if params["batch_group_count"] != 1 or (
        not transposed and any(side < 0 for pair in params["padding"] for side in pair)
    ):
        raise unsupported(eqn)
    x = graph.ordered(graph.whole(images), numbers.lhs_spec)
    if not transposed:
        k = graph.ordered(graph.whole(kernel), numbers.rhs_spec)
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
    return [output(eqn, x, order=numbers.out_spec)]


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
    k = graph.ordered(graph.whole(reverse(graph, kernel, spatial)), [inputs, outputs, *spatial])
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
    (x,) = graph.add(
        "MaxPool",
        [graph.ordered(graph.whole(value), CHANNELS_FIRST)],
        kernel_shape=list(window[1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=_pads(padding[1:3]),
    )
    return [output(eqn, x, order=CHANNELS_FIRST)]


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
    return [output(eqn, x, order=order)]


NETWORK_FORMS: dict[str, Form] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
}
