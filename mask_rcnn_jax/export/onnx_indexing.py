"""JAX's reductions, orders, and indexing as operations of ONNX."""

import math
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_primitives import Form, output, unsupported


def reduction(operation: str, of_nothing: float | None = None) -> Form:
    """A reduction; booleans are reduced as integers. ONNX leaves open what comes `of_nothing`."""

    def form(graph: Graph, eqn: Any, value: Value) -> list[Value]:
        logical = value.dtype == bool
        if 0 in value.shape:
            if of_nothing is None:
                raise unsupported(eqn)
            out = eqn.outvars[0].aval
            return [
                Value(out.shape, (1,) * out.ndim, out.dtype, constant=np.full((1,) * out.ndim, of_nothing, out.dtype))
            ]
        name = graph.full(value)
        name = graph.cast(name, np.int32) if logical else name
        (name,) = graph.add(operation, [name, graph.ints(eqn.params["axes"])], keepdims=0)
        return [output(eqn, graph.cast(name, bool) if logical else name)]

    return form


def _argmax(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    (name,) = graph.add("ArgMax", [graph.full(value)], axis=eqn.params["axes"][0], keepdims=0)
    return [output(eqn, graph.cast(name, eqn.params["index_dtype"]))]


def _cumsum(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    axis = graph.constant(np.array(eqn.params["axis"], np.int64))
    return [output(eqn, graph.add("CumSum", [graph.full(value), axis], reverse=int(eqn.params["reverse"]))[0])]


def _top_k(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    axis = eqn.params.get("axis", -1)
    values, indices = graph.add("TopK", [graph.full(value), graph.ints([eqn.params["k"]])], 2, axis=axis)
    return [output(eqn, values), output(eqn, graph.cast(indices, np.int32), number=1)]


def _sort(graph: Graph, eqn: Any, key: Value, *others: Value) -> list[Value]:
    """TopK of all rows: among equals it takes the lowest index first, so it is stable."""
    if eqn.params["num_keys"] != 1:
        raise unsupported(eqn)
    axis = eqn.params["dimension"]
    name = graph.cast(graph.full(key), np.int32) if key.dtype == bool else graph.full(key)
    inputs = [name, graph.ints([key.shape[axis]])]
    _, order = graph.add("TopK", inputs, 2, axis=axis, largest=0)
    sorted_names = [graph.add("GatherElements", [graph.full(x), order], axis=axis)[0] for x in (key, *others)]
    return [output(eqn, name, number=number) for number, name in enumerate(sorted_names)]


def _gather(graph: Graph, eqn: Any, value: Value, indices: Value) -> list[Value]:
    """Rows at indices: batch axes first, then the axes that are indexed, then whole ones, as GatherND has them."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch, indexed = tuple(numbers.operand_batching_dims), tuple(int(i) for i in numbers.start_index_map)
    whole = tuple(i for i in range(len(value.shape)) if i not in batch + indexed)
    plain = sorted(int(i) for i in numbers.collapsed_slice_dims) == sorted(indexed)
    in_order = tuple(numbers.start_indices_batching_dims) == tuple(range(len(batch)))
    known = eqn.params["mode"] in (GatherScatterMode.PROMISE_IN_BOUNDS, GatherScatterMode.CLIP)
    if not (plain and in_order and known and all(sizes[i] == value.shape[i] for i in whole)):
        raise unsupported(eqn)
    order = (*batch, *indexed, *whole)
    name = graph.full(value)
    if order != tuple(range(len(order))):
        (name,) = graph.add("Transpose", [name], perm=list(order))
    at = graph.full(indices)
    if eqn.params["mode"] == GatherScatterMode.CLIP:
        limit = np.array([value.shape[i] - 1 for i in indexed], indices.dtype)
        (at,) = graph.add("Max", [at, graph.constant(np.zeros_like(limit))])
        (at,) = graph.add("Min", [at, graph.constant(limit)])
    (name,) = graph.add("GatherND", [name, graph.cast(at, np.int64)], batch_dims=len(batch))
    rank = len(eqn.outvars[0].aval.shape)
    offsets = [int(i) for i in numbers.offset_dims]
    made = [i for i in range(rank) if i not in offsets] + offsets  # where each axis of GatherND belongs
    if made != list(range(rank)):
        (name,) = graph.add("Transpose", [name], perm=[made.index(i) for i in range(rank)])
    return [output(eqn, name)]


def _scatter(graph: Graph, eqn: Any, value: Value, indices: Value, updates: Value) -> list[Value]:
    """A window that is overwritten at a place known now: what is before it, it, and what comes after."""
    numbers = eqn.params["dimension_numbers"]
    axes, at = numbers.scatter_dims_to_operand_dims, indices.constant
    if numbers.inserted_window_dims or len(updates.shape) != len(value.shape) or len(axes) > 1:
        raise unsupported(eqn)
    if updates.shape == value.shape:
        return [updates]
    if at is None or math.prod(indices.shape) != 1:
        raise unsupported(eqn)
    axis, start = int(axes[0]), int(at.reshape(-1)[0])
    end, name, along = start + updates.shape[axis], graph.full(value), graph.ints([axis])
    parts = [graph.full(updates)]
    if start > 0:
        parts = [*graph.add("Slice", [name, graph.ints([0]), graph.ints([start]), along]), *parts]
    if end < value.shape[axis]:
        limit = graph.ints([value.shape[axis]])
        parts = [*parts, *graph.add("Slice", [name, graph.ints([end]), limit, along])]
    return [output(eqn, graph.add("Concat", parts, axis=axis)[0])]


INDEXING_FORMS: dict[str, Form] = {
    "argmax": _argmax,
    "cumsum": _cumsum,
    "gather": _gather,
    "reduce_and": reduction("ReduceMin", True),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "reduce_or": reduction("ReduceMax", False),
    "reduce_sum": reduction("ReduceSum", 0),
    "scatter": _scatter,
    "sort": _sort,
    "top_k": _top_k,
}
