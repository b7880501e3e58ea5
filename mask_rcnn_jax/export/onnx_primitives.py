"""JAX's primitives as operations of ONNX: those that go element by element, and those that change shapes.

Each function here, in `onnx_functions`, `onnx_indexing` and `onnx_networks` takes the graph, an equation of a jaxpr and
the values of its inputs, and returns those of its outputs. Tables such as `FORMS` name them by primitive; what is in
none, and is no call, choice or loop, cannot be exported.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.onnx_graph import Graph, Value

Form = Callable[..., list[Value]]


def output(eqn: Any, name: str, held: tuple[int, ...] | None = None, number: int = 0) -> Value:
    """The value of an equation's output."""
    aval = eqn.outvars[number].aval
    return Value(aval.shape, aval.shape if held is None else held, aval.dtype, name)


def unsupported(eqn: Any) -> UserError:
    return UserError(f"ONNX has no form yet of JAX's {eqn.primitive.name} with {eqn.params}; export to StableHLO")


# --- Element by element -----------------------------------------------------------------------------------------------


def elementwise(operation: str, **attributes: Any) -> Form:
    """The form of a primitive that is one operation of ONNX."""

    def form(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
        (name,) = graph.add(operation, [graph.held(value) for value in inputs], **attributes)
        return [output(eqn, name, joint(inputs))]

    return form


def chain(*operations: str) -> Form:
    """Operations of which each takes the result of the one before."""

    def form(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
        names = [graph.held(value) for value in inputs]
        for operation in operations:
            names = graph.add(operation, names)
        return [output(eqn, names[0], joint(inputs))]

    return form


def _bitwise(operation: str) -> Form:
    """An operation of ONNX on booleans, and the one on the bits of integers."""

    def form(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
        return elementwise(operation if inputs[0].dtype == bool else f"Bitwise{operation}")(graph, eqn, *inputs)

    return form


def joint(inputs: Sequence[Value]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(value.held for value in inputs))


def _same(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    return [value]


def _is_finite(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    name = graph.held(value)
    (bad,) = graph.add("Or", [*graph.add("IsInf", [name]), *graph.add("IsNaN", [name])])
    return [output(eqn, graph.add("Not", [bad])[0], value.held)]


def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> list[Value]:
    """Take the case of a number, or of a boolean, which is one of two."""
    name, logical = graph.held(cases[0]), cases[0].dtype == bool
    for number, case in enumerate(cases[1:], 1):
        chosen = graph.held(which)
        if which.dtype != bool:
            (chosen,) = graph.add("Equal", [chosen, graph.constant(np.array(number, which.dtype))])
        name = where(graph, chosen, graph.held(case), name, logical=logical)
    return [output(eqn, name, joint((which, *cases)))]


def where(graph: Graph, condition: str, then: str, otherwise: str, *, logical: bool) -> str:
    """A choice element by element; `logical` where the choices are booleans, which ONNX Runtime's Where refuses."""
    if not logical:
        return graph.add("Where", [condition, then, otherwise])[0]
    (chosen,) = graph.add("And", [condition, then])
    (other,) = graph.add("And", [*graph.add("Not", [condition]), otherwise])
    return graph.add("Or", [chosen, other])[0]


def _clamp(graph: Graph, eqn: Any, low: Value, value: Value, high: Value) -> list[Value]:
    (above,) = graph.add("Max", [graph.held(value), graph.held(low)])
    return [output(eqn, graph.add("Min", [above, graph.held(high)])[0], joint((low, value, high)))]


def _convert(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    dtype = eqn.outvars[0].aval.dtype
    if value.constant is not None and value.constant.size <= 64:
        return [Value(value.shape, value.held, dtype, constant=value.constant.astype(dtype))]
    if dtype == value.dtype:
        return [value]
    return [output(eqn, graph.cast(graph.held(value), dtype), value.held)]


# --- Shapes -----------------------------------------------------------------------------------------------------------


def _reshaped(graph: Graph, eqn: Any, value: Value, held: tuple[int, ...]) -> list[Value]:
    """The held tensor with other sides of the same product."""
    shape = eqn.outvars[0].aval.shape
    if value.constant is not None:
        return [Value(shape, held, value.dtype, constant=value.constant.reshape(held))]
    name = value.name if held == value.held else graph.add("Reshape", [value.name, graph.ints(held)])[0]
    return [Value(shape, held, value.dtype, name)]


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
    whole = value if value.held == value.shape else Value(value.shape, value.shape, value.dtype, graph.full(value))
    return _reshaped(graph, eqn, whole, shape)


def _transpose(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    order = eqn.params["permutation"]
    (name,) = graph.add("Transpose", [graph.held(value)], perm=list(order))
    return [output(eqn, name, tuple(value.held[i] for i in order))]


def _slice(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    steps = eqn.params["strides"] or (1,) * len(value.shape)
    bounds = zip(eqn.params["start_indices"], eqn.params["limit_indices"], steps, strict=True)
    kept = [(0, 1, 1) if held == 1 else bound for held, bound in zip(value.held, bounds, strict=True)]
    starts, ends, strides = zip(*kept, strict=True)
    inputs = [graph.held(value), *(graph.ints(x) for x in (starts, ends, range(len(kept)), strides))]
    out = eqn.outvars[0].aval.shape
    held = tuple(1 if side == 1 else length for side, length in zip(value.held, out, strict=True))
    return [output(eqn, graph.add("Slice", inputs)[0], held)]


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
    names = [graph.full(value) for value in values]
    return [output(eqn, graph.add("Concat", names, axis=eqn.params["dimension"])[0])]


def _stack(graph: Graph, eqn: Any, *values: Value) -> list[Value]:
    axis = eqn.params["axis"]
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
    names = [graph.add("Gather", [value.name, index], axis=axis)[0] for index in indices]
    numbers = range(len(eqn.outvars))
    return [output(eqn, names[number % len(names)], held, number) for number in numbers]


def _pad(graph: Graph, eqn: Any, value: Value, fill: Value) -> list[Value]:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise unsupported(eqn)
    if not any(low or high for low, high, _ in config):
        return [value]
    pads = graph.ints([int(low) for low, _, _ in config] + [int(high) for _, high, _ in config])
    return [output(eqn, graph.add("Pad", [graph.full(value), pads, graph.held(fill)])[0])]


def _iota(graph: Graph, eqn: Any) -> list[Value]:
    shape, dimension = eqn.params["shape"], eqn.params["dimension"]
    held = tuple(side if i == dimension else 1 for i, side in enumerate(shape))
    counted = np.arange(shape[dimension]).astype(eqn.params["dtype"]).reshape(held)
    return [Value(tuple(shape), held, counted.dtype, constant=counted)]


FORMS: dict[str, Form] = {
    "abs": elementwise("Abs"),
    "add": elementwise("Add"),
    "and": _bitwise("And"),
    "broadcast_in_dim": _broadcast,
    "ceil": elementwise("Ceil"),
    "clamp": _clamp,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _same,
    "div": elementwise("Div"),
    "eq": elementwise("Equal"),
    "floor": elementwise("Floor"),
    "ge": elementwise("GreaterOrEqual"),
    "gt": elementwise("Greater"),
    "iota": _iota,
    "is_finite": _is_finite,
    "le": elementwise("LessOrEqual"),
    "lt": elementwise("Less"),
    "max": elementwise("Max"),
    "min": elementwise("Min"),
    "mul": elementwise("Mul"),
    "ne": chain("Equal", "Not"),
    "neg": elementwise("Neg"),
    "not": _bitwise("Not"),
    "optimization_barrier": _same,
    "or": _bitwise("Or"),
    "pad": _pad,
    "rem": elementwise("Mod", fmod=1),
    "reshape": _reshape,
    "rev": _rev,
    "select_n": _select,
    "sign": elementwise("Sign"),
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": _same,
    "sub": elementwise("Sub"),
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
    "xor": _bitwise("Xor"),
}
