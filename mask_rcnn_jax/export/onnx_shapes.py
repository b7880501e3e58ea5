"""JAX's changes of shapes as operations of ONNX: reshapes, transposes, slices, and what joins arrays."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_primitives import Form, aligned, constant, output, unsupported


def _reshaped(graph: Graph, eqn: Any, value: Value, held: tuple[int, ...]) -> list[Value]:
    """The held tensor with other sides of the same product."""
    shape = eqn.outvars[0].aval.shape
    if value.constant is not None:
        return [Value(shape, held, value.dtype, constant=value.constant.reshape(held))]
    if held == value.held:
        return [replace(value, shape=shape)]
    order = _order_of_reshaped(value, held) if value.order else None
    name = graph.held(value) if order is None else value.name
    order = tuple(range(len(held))) if order is None else order
    (reshaped,) = graph.add("Reshape", [name, graph.ints(held[axis] for axis in order)])
    return [replace(output(eqn, reshaped, held, order=order), flattened=value if name != value.name else None)]


def _order_of_reshaped(value: Value, held: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the order that a reshape makes of a transposed tensor's, None where axes that it joins lie apart."""
    groups = _groups(value.held, held)
    of_axis = {axis: number for number, (before, _) in enumerate(groups) for axis in before}
    order: list[int] = []
    rest = [*value.axes]
    while rest:
        before, after = groups[of_axis[rest[0]]]
        joined = [axis for axis in before if value.held[axis] != 1]
        if value.held[rest[0]] == 1 and joined:  # goes with the others of its group
            rest = rest[1:]
            continue
        if [axis for axis in rest if value.held[axis] != 1][: len(joined)] != joined:
            return None
        order = [*order, *after]
        rest = [axis for axis in rest if axis not in before]
    return tuple(order)


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return which axes a reshape joins or divides to which others, as few as have the same product."""
    groups, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        first, second = (i, j)
        i, j = i + 1, j + 1
        while math.prod(before[first:i]) != math.prod(after[second:j]):
            if math.prod(before[first:i]) < math.prod(after[second:j]):
                i += 1
            else:
                j += 1
        while i < len(before) and before[i] == 1:
            i += 1
        while j < len(after) and after[j] == 1:
            j += 1
        groups.append(([*range(first, i)], [*range(second, j)]))
    return groups


def _broadcast(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    held = [1] * len(eqn.params["shape"])
    for side, dimension in zip(value.held, eqn.params["broadcast_dimensions"], strict=True):
        held[dimension] = side
    return _reshaped(graph, eqn, value, tuple(held))


def _squeeze(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    gone = {dimension % len(value.shape) for dimension in eqn.params["dimensions"]}
    return _reshaped(graph, eqn, value, tuple(side for i, side in enumerate(value.held) if i not in gone))


def _reshape(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    if math.prod(value.held) == 1:
        return _reshaped(graph, eqn, value, (1,) * len(shape))
    if repeated := _repeated(graph, eqn, value):
        return [repeated]
    return _reshaped(graph, eqn, graph.whole(value), shape)


def _repeated(graph: Graph, eqn: Any, value: Value) -> Value | None:
    """Return images channels-first whose rows or columns are repeated by a broadcast and a reshape; None for others."""
    shape = eqn.outvars[0].aval.shape
    new = [axis for axis, side in enumerate(value.shape) if value.held[axis] != side]
    if value.order != (0, 4, 1, 2, 3) or value.dtype != np.float32 or len(new) != 1 or new[0] not in (2, 3):
        return None
    (axis,) = new
    if shape != (*value.shape[: axis - 1], value.shape[axis - 1] * value.shape[axis], *value.shape[axis + 1 :]):
        return None
    sides = [side for i, side in enumerate(value.held) if i != axis]
    order = (0, 3, 1, 2)
    (name,) = graph.add("Reshape", [value.name, graph.ints(sides[i] for i in order)])
    scales = np.array([value.shape[axis] if i == axis - 1 else 1 for i in order], np.float32)
    (name,) = graph.add(
        "Resize",
        [name, "", graph.constant(scales)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return output(eqn, name, order=order)


def _transpose(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """Only note the order of the axes: whoever needs another transposes."""
    moved = [int(axis) for axis in eqn.params["permutation"]]
    if value.constant is not None:
        return [constant(eqn, value.constant.transpose(moved))]
    held = tuple(value.held[axis] for axis in moved)
    return [output(eqn, value.name, held, order=[moved.index(axis) for axis in value.axes])]


def _slice(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    steps = eqn.params["strides"] or (1,) * len(value.shape)
    bounds = [*zip(eqn.params["start_indices"], eqn.params["limit_indices"], steps, strict=True)]
    kept = [(0, 1, 1) if value.held[axis] == 1 else bounds[axis] for axis in value.axes]
    starts, ends, strides = zip(*kept, strict=True)
    inputs = [graph.own(value), *(graph.ints(x) for x in (starts, ends, range(len(kept)), strides))]
    out = eqn.outvars[0].aval.shape
    held = tuple(1 if side == 1 else length for side, length in zip(value.held, out, strict=True))
    return [output(eqn, graph.add("Slice", inputs)[0], held, order=value.axes)]


def _rev(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    return [reverse(graph, value, eqn.params["dimensions"])]


def reverse(graph: Graph, value: Value, axes: Sequence[int]) -> Value:
    """The array with these axes the other way round."""
    starts, ends, steps = ([number] * len(axes) for number in (-1, np.iinfo(np.int64).min, -1))
    inputs = [graph.held(value), *(graph.ints(x) for x in (starts, ends, axes, steps))]
    return Value(value.shape, value.held, value.dtype, graph.add("Slice", inputs)[0])


def _tile(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    return [output(eqn, graph.add("Tile", [graph.full(value), graph.ints(eqn.params["reps"])])[0])]


def _concatenate(graph: Graph, eqn: Any, *values: Value) -> list[Value]:
    small = [value.constant for value in values if value.constant is not None and value.constant.size <= 64]
    if len(small) == len(values):
        whole = [np.broadcast_to(x, value.shape) for x, value in zip(small, values, strict=True)]
        joined = np.concatenate(whole, axis=eqn.params["dimension"])
        return [Value(joined.shape, joined.shape, values[0].dtype, constant=joined)]
    names, order = aligned(graph, [graph.whole(value) for value in values])
    return [output(eqn, graph.add("Concat", names, axis=order.index(eqn.params["dimension"]))[0], order=order)]


def _stack(graph: Graph, eqn: Any, *values: Value) -> list[Value]:
    axis = eqn.params["axis"]
    known = [value.constant for value in values if value.constant is not None and value.constant.size == 1]
    if len(known) == len(values) and len({array.item() for array in known}) == 1:
        return [constant(eqn, known[0].reshape((1,) * (known[0].ndim + 1)))]
    names = [graph.add("Unsqueeze", [graph.full(value), graph.ints([axis])])[0] for value in values]
    return [output(eqn, graph.add("Concat", names, axis=axis)[0])]


def _split(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    names = graph.add("Split", [graph.full(value), graph.ints(sizes)], len(sizes), axis=axis)
    return [output(eqn, name, number=number) for number, name in enumerate(names)]


def _unstack(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    axis = eqn.params["axis"]
    if value.constant is not None:
        rows = np.moveaxis(np.broadcast_to(value.constant, value.shape), axis, 0)
        return [Value(row.shape, row.shape, value.dtype, constant=row) for row in rows]
    held = (*value.held[:axis], *value.held[axis + 1 :])
    # An index without axes takes its axis away. What is broadcast along it has one row that is all of them.
    indices = [graph.constant(np.array(row, np.int64)) for row in range(value.held[axis])]
    name = graph.held(value)
    names = [graph.add("Gather", [name, index], axis=axis)[0] for index in indices]
    numbers = range(len(eqn.outvars))
    return [output(eqn, names[number % len(names)], held, number) for number in numbers]


def _pad(graph: Graph, eqn: Any, value: Value, fill: Value) -> list[Value]:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise unsupported(eqn)
    if not any(low or high for low, high, _ in config):
        return [value]
    whole = graph.whole(value)
    pads = graph.ints([config[axis][end] for end in (0, 1) for axis in whole.axes])
    return [output(eqn, graph.add("Pad", [graph.own(whole), pads, graph.held(fill)])[0], order=whole.axes)]


def _iota(graph: Graph, eqn: Any) -> list[Value]:
    shape, dimension = eqn.params["shape"], eqn.params["dimension"]
    held = tuple(side if i == dimension else 1 for i, side in enumerate(shape))
    counted = np.arange(shape[dimension]).astype(eqn.params["dtype"]).reshape(held)
    return [Value(tuple(shape), held, counted.dtype, constant=counted)]


SHAPE_FORMS: dict[str, Form] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "iota": _iota,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
