"""JAX's reductions, orders, and indexing as operations of ONNX."""

import math
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_primitives import Form, constant, output, unsupported, where


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
        gone = [int(axis) for axis in eqn.params["axes"]]
        if value.constant is not None and value.constant.size == 1 and operation in ("ReduceMax", "ReduceMin"):
            return [constant(eqn, value.constant.reshape((1,) * (value.constant.ndim - len(gone))))]
        whole = graph.whole(value)
        name = graph.cast(graph.own(whole), np.int32) if logical else graph.own(whole)
        (name,) = graph.add(operation, [name, graph.ints(whole.axes.index(axis) for axis in gone)], keepdims=0)
        left = [axis for axis in whole.axes if axis not in gone]
        order = [sorted(left).index(axis) for axis in left]
        return [output(eqn, graph.cast(name, bool) if logical else name, order=order)]

    return form


def _index_of(operation: str) -> Form:
    """The first index of the greatest or the least."""

    def form(graph: Graph, eqn: Any, value: Value) -> list[Value]:
        name = graph.cast(graph.full(value), np.int32) if value.dtype == bool else graph.full(value)
        (name,) = graph.add(operation, [name], axis=eqn.params["axes"][0], keepdims=0)
        return [output(eqn, graph.cast(name, eqn.params["index_dtype"]))]

    return form


def _cumsum(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    axis = graph.constant(np.array(eqn.params["axis"], np.int64))
    return [output(eqn, graph.add("CumSum", [graph.full(value), axis], reverse=int(eqn.params["reverse"]))[0])]


def _top_k(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    axis = eqn.params.get("axis", -1)
    values, indices = graph.add("TopK", [graph.full(value), graph.ints([eqn.params["k"]])], 2, axis=axis)
    return [output(eqn, values), output(eqn, graph.cast(indices, np.int32), number=1)]


def _sort(graph: Graph, eqn: Any, key: Value, *others: Value) -> list[Value]:
    """TopK of all rows: among equals it takes the lowest index first, so it is stable.

    OpenVINO does not keep to that: booleans, nearly all of which are equals, are numbered.
    """
    if eqn.params["num_keys"] != 1:
        raise unsupported(eqn)
    axis, name = eqn.params["dimension"], graph.full(key)
    if key.dtype == bool:
        length = key.shape[axis]
        sides = [length if i == axis else 1 for i in range(len(key.shape))]
        rows, step = np.arange(length, dtype=np.int32).reshape(sides), np.array(length, np.int32)
        (name,) = graph.add("Mul", [graph.cast(name, np.int32), graph.constant(step)])
        (name,) = graph.add("Add", [name, graph.constant(rows)])
    inputs = [name, graph.ints([key.shape[axis]])]
    _, order = graph.add("TopK", inputs, 2, axis=axis, largest=0)
    sorted_names = [graph.add("GatherElements", [graph.full(x), order], axis=axis)[0] for x in (key, *others)]
    return [output(eqn, name, number=number) for number, name in enumerate(sorted_names)]


def _gather(graph: Graph, eqn: Any, value: Value, indices: Value) -> list[Value]:
    """Windows at indices: batch axes first, then the axes that are indexed, then whole ones, as GatherND has them."""
    numbers, sizes, mode = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.params["mode"]
    batch, filled = tuple(map(int, numbers.operand_batching_dims)), mode == GatherScatterMode.FILL_OR_DROP
    # An axis that is taken whole begins at 0 whatever its index, but for one that says that nothing is there.
    axes = [int(i) for i in numbers.start_index_map]
    columns = [k for k, i in enumerate(axes) if filled or sizes[i] < value.shape[i]] or [*range(len(axes))]
    indexed = tuple(axes[k] for k in columns)
    whole = tuple(i for i in range(len(value.shape)) if i not in batch + indexed)
    known = filled or mode in (GatherScatterMode.PROMISE_IN_BOUNDS, GatherScatterMode.CLIP)
    if not (indexed and known and all(sizes[i] == value.shape[i] for i in whole)):
        raise unsupported(eqn)
    name, at, lead = graph.full(value), graph.full(indices), len(indices.shape) - 1
    batched = tuple(int(i) for i in numbers.start_indices_batching_dims)
    free = (*batched, *(i for i in range(lead) if i not in batched))
    name = _transposed(graph, name, (*batch, *indexed, *whole))
    at = _transposed(graph, at, (*free, lead))
    if len(columns) < indices.shape[-1]:
        (at,) = graph.add("Gather", [at, graph.ints(columns)], axis=lead)
    limit = np.array([value.shape[i] - sizes[i] for i in indexed], indices.dtype)
    inside = _inside(graph, at, limit) if filled else ""
    # Also where it is promised to be in bounds, as `x[i]` does: JAX takes the nearest then, ONNX Runtime stops.
    (at,) = graph.add("Max", [at, graph.constant(np.zeros_like(limit))])
    (at,) = graph.add("Min", [at, graph.constant(limit)])
    sides, window = [indices.shape[i] for i in free], [sizes[i] for i in indexed]
    kept = [i for i in (*indexed, *whole) if i not in map(int, numbers.collapsed_slice_dims)]
    shape = [*sides, *(sizes[i] for i in whole)]
    if math.prod(window) > 1:
        (at,) = graph.add("Reshape", [at, graph.ints([*sides, *[1] * len(window), len(window)])])
        steps = np.moveaxis(np.indices(window, indices.dtype), 0, -1)
        (at,) = graph.add("Add", [at, graph.constant(steps)])
        shape = [*sides, *window, *(sizes[i] for i in whole)]
    (name,) = graph.add("GatherND", [name, graph.cast(at, np.int64)], batch_dims=len(batch))
    if shape != (shape := [*sides, *(sizes[i] for i in kept)]):
        (name,) = graph.add("Reshape", [name, graph.ints(shape)])
    if filled:
        (inside,) = graph.add("Reshape", [inside, graph.ints([*sides, *[1] * len(kept)])])
        fill = graph.constant(np.array(eqn.params["fill_value"], value.dtype))
        name = where(graph, inside, name, fill, logical=value.dtype == bool)
    offsets = [int(i) for i in numbers.offset_dims]
    places = [i for i in range(lead + len(kept)) if i not in offsets]
    made = [places[i] for i in free] + [offsets[sorted(kept).index(i)] for i in kept]  # where each axis belongs
    return [output(eqn, _transposed(graph, name, tuple(made.index(i) for i in range(len(made)))))]


def _inside(graph: Graph, at: str, limit: np.ndarray) -> str:
    """Tell which indices are all between 0 and the limit."""
    (low,) = graph.add("GreaterOrEqual", [at, graph.constant(np.zeros_like(limit))])
    (high,) = graph.add("LessOrEqual", [at, graph.constant(limit)])
    both = graph.cast(graph.add("And", [low, high])[0], np.int32)
    return graph.cast(graph.add("ReduceMin", [both, graph.ints([-1])], keepdims=0)[0], bool)


def _transposed(graph: Graph, name: str, order: tuple[int, ...]) -> str:
    if order == tuple(range(len(order))):
        return name
    return graph.add("Transpose", [name], perm=list(order))[0]


def _dynamic_slice(graph: Graph, eqn: Any, value: Value, *starts: Value) -> list[Value]:
    """Rows at the indices from a start on, as many as are asked for."""
    name, held, sizes = graph.held(value), list(value.held), eqn.params["slice_sizes"]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if held[axis] == 1 or size == held[axis]:
            continue
        at = _start(graph, start, held[axis] - size)
        (at,) = graph.add("Add", [at, graph.ints(range(size))])
        (name,) = graph.add("Gather", [name, at], axis=axis)
        held[axis] = size
    return [output(eqn, name, tuple(held))]


def _dynamic_update_slice(graph: Graph, eqn: Any, value: Value, update: Value, *starts: Value) -> list[Value]:
    """Repeat the first and last rows of the update around it, and take it where it is itself."""
    if 0 in update.shape:
        return [value]
    name, inside, rank = graph.full(update), "", len(value.shape)
    for axis, start in enumerate(starts):
        side, size = value.shape[axis], update.shape[axis]
        if size == side:
            continue
        (row,) = graph.add("Sub", [graph.ints(range(side)), _start(graph, start, side - size)])
        first, last = (graph.constant(np.array(number, np.int64)) for number in (0, size - 1))
        (nearest,) = graph.add("Min", [*graph.add("Max", [row, first]), last])
        (name,) = graph.add("Gather", [name, nearest], axis=axis)
        (here,) = graph.add("Equal", [row, nearest])
        (here,) = graph.add("Reshape", [here, graph.ints(side if i == axis else 1 for i in range(rank))])
        inside = graph.add("And", [inside, here])[0] if inside else here
    if not inside:
        return [update]
    return [output(eqn, where(graph, inside, name, graph.full(value), logical=value.dtype == bool))]


def _start(graph: Graph, start: Value, last: int) -> str:
    """Move a start that is too far to where a whole window fits."""
    (at,) = graph.add("Max", [graph.cast(graph.full(start), np.int64), graph.constant(np.array(0, np.int64))])
    return graph.add("Min", [at, graph.constant(np.array(last, np.int64))])[0]


def _scatter(graph: Graph, eqn: Any, value: Value, indices: Value, updates: Value) -> list[Value]:
    """A window that is overwritten at a place known now: what is before it, it, and what comes after.

    Or elements of the last axis, each at most once, in every row at places of its own.
    """
    numbers = eqn.params["dimension_numbers"]
    axes, at = numbers.scatter_dims_to_operand_dims, indices.constant
    last = len(value.shape) - 1
    rows = tuple(numbers.operand_batching_dims) == tuple(numbers.scatter_indices_batching_dims) == tuple(range(last))
    in_bounds = eqn.params["mode"] == GatherScatterMode.PROMISE_IN_BOUNDS
    if rows and tuple(numbers.inserted_window_dims) == tuple(axes) == (last,) and in_bounds:
        (places,) = graph.add("Squeeze", [graph.cast(graph.full(indices), np.int64), graph.ints([-1])])
        elements = [graph.full(value), places, graph.full(updates)]
        return [output(eqn, graph.add("ScatterElements", elements, axis=last)[0])]
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
    "argmax": _index_of("ArgMax"),
    "argmin": _index_of("ArgMin"),
    "cumsum": _cumsum,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "reduce_and": reduction("ReduceMin", True),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "reduce_or": reduction("ReduceMax", False),
    "reduce_prod": reduction("ReduceProd", 1),
    "reduce_sum": reduction("ReduceSum", 0),
    "scatter": _scatter,
    "sort": _sort,
    "top_k": _top_k,
}
