"""JAX's primitives as operations of ONNX: those that go element by element, and what all forms share.

Each function here, in `onnx_shapes`, `onnx_indexing`, `onnx_networks` and `onnx_rois` takes the graph, an equation
of a jaxpr and the values of its inputs, and returns those of its outputs. Tables such as `FORMS` name them by
primitive; what is in none, and is no call, choice or loop, cannot be exported.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jax.lax import RoundingMethod

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.onnx_graph import Graph, Value

Form = Callable[..., list[Value]]


def output(
    eqn: Any, name: str, held: tuple[int, ...] | None = None, number: int = 0, order: Sequence[int] = ()
) -> Value:
    """The value of an equation's output; `order` is that of its tensor's axes."""
    aval = eqn.outvars[number].aval
    whole = aval.shape if held is None else held
    return Value(aval.shape, whole, aval.dtype, name, order=sparing(int(axis) for axis in order))


def sparing(order: Iterable[int]) -> tuple[int, ...]:
    """Return an order of axes as `Value.order` has it."""
    order = tuple(order)
    return () if order == tuple(range(len(order))) else order


def constant(eqn: Any, held: np.ndarray) -> Value:
    """The value of an equation's output that is known now."""
    aval = eqn.outvars[0].aval
    return Value(aval.shape, held.shape, aval.dtype, constant=held.astype(aval.dtype))


def unsupported(eqn: Any) -> UserError:
    return UserError(f"ONNX has no form yet of JAX's {eqn.primitive.name} with {eqn.params}; export to StableHLO")


# --- Element by element -----------------------------------------------------------------------------------------------


def aligned(graph: Graph, values: Sequence[Value]) -> tuple[list[str], tuple[int, ...]]:
    """Return tensors with their axes in one order: the largest one's, and of equally large ones a transposed one's."""

    def weight(value: Value) -> tuple[int, ...]:
        return len(value.shape), value.constant is None, math.prod(value.held), bool(value.order)

    largest = max(values, key=weight)
    names = [graph.ordered(value, largest.axes) if value.shape else graph.own(value) for value in values]
    return names, largest.axes


def elementwise(operation: str, known: Callable[..., Any] | None = None, **attributes: Any) -> Form:
    """The form of a primitive that is one operation of ONNX; of constants, `known` computes it now."""

    def form(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
        arrays = [value.constant for value in inputs if value.constant is not None]
        if known is not None and len(arrays) == len(inputs):
            with np.errstate(all="ignore"):
                return [constant(eqn, np.asarray(known(*arrays)))]
        names, order = aligned(graph, inputs)
        return [output(eqn, graph.add(operation, names, **attributes)[0], joint(inputs), order=order)]

    return form


def chain(*operations: str) -> Form:
    """Operations of which each takes the result of the one before."""

    def form(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
        names, order = aligned(graph, inputs)
        for operation in operations:
            names = graph.add(operation, names)
        return [output(eqn, names[0], joint(inputs), order=order)]

    return form


def _bitwise(operation: str) -> Form:
    """An operation of ONNX on booleans, and the one on the bits of integers."""

    def form(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
        logical = inputs[0].dtype == bool
        if logical and operation == "And" and any(x.constant is not None and not x.constant.any() for x in inputs):
            # A zero that varies over devices as an operand does, and of which kernels would not be constants.
            return [constant(eqn, np.zeros((1,) * len(eqn.outvars[0].aval.shape), bool))]
        return elementwise(operation if logical else f"Bitwise{operation}")(graph, eqn, *inputs)

    return form


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a / b if np.issubdtype(a.dtype, np.floating) else (np.sign(a) * np.sign(b)) * (abs(a) // abs(b))


def joint(inputs: Sequence[Value]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(value.held for value in inputs))


def _same(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    return [value]


def _is_finite(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    name = graph.own(value)
    (bad,) = graph.add("Or", [*graph.add("IsInf", [name]), *graph.add("IsNaN", [name])])
    return [output(eqn, graph.add("Not", [bad])[0], value.held, order=value.axes)]


def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> list[Value]:
    """Take the case of a number, or of a boolean, which is one of two."""
    (selector, name, *others), order = aligned(graph, (which, *cases))
    for number, other in enumerate(others, 1):
        chosen = selector
        if which.dtype != bool:
            (chosen,) = graph.add("Equal", [chosen, graph.constant(np.array(number, which.dtype))])
        name = where(graph, chosen, other, name, logical=cases[0].dtype == bool)
    return [output(eqn, name, joint((which, *cases)), order=order)]


def where(graph: Graph, condition: str, then: str, otherwise: str, *, logical: bool) -> str:
    """A choice element by element; `logical` where the choices are booleans, which ONNX Runtime's Where refuses."""
    if not logical:
        return graph.add("Where", [condition, then, otherwise])[0]
    (chosen,) = graph.add("And", [condition, then])
    (other,) = graph.add("And", [*graph.add("Not", [condition]), otherwise])
    return graph.add("Or", [chosen, other])[0]


def _max(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
    """The maximum with a constant 0 by its own name, by which ONNX Runtime joins it to the convolution before it."""
    bounds = [x.constant for x in inputs if x.constant is not None and x.constant.dtype == np.float32]
    if len(bounds) != 1 or bounds[0].any():
        return elementwise("Max")(graph, eqn, *inputs)
    (value,) = (x for x in inputs if x.constant is None)
    return [output(eqn, graph.add("Relu", [value.name])[0], value.held, order=value.axes)]


def _clamp(graph: Graph, eqn: Any, low: Value, value: Value, high: Value) -> list[Value]:
    (lowest, name, highest), order = aligned(graph, (low, value, high))
    (above,) = graph.add("Max", [name, lowest])
    return [output(eqn, graph.add("Min", [above, highest])[0], joint((low, value, high)), order=order)]


def _convert(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    dtype = eqn.outvars[0].aval.dtype
    if value.constant is not None and value.constant.size <= 64:
        return [Value(value.shape, value.held, dtype, constant=value.constant.astype(dtype))]
    if dtype == value.dtype:
        return [value]
    return [output(eqn, graph.cast(graph.own(value), dtype), value.held, order=value.axes)]


# --- Functions of numbers, such as powers and logarithms --------------------------------------------------------------


def _square(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    return elementwise("Mul")(graph, eqn, value, value)


def _integer_pow(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    power = Value((), (), value.dtype, constant=np.array(eqn.params["y"], value.dtype))
    return elementwise("Pow")(graph, eqn, value, power)


def _log2(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """Multiply by the number that JAX multiplies by: RoIs' levels are rounded logarithms."""
    (natural,) = graph.add("Log", [graph.held(value)])
    factor = graph.constant(np.array(1 / math.log(2), value.dtype))
    return [output(eqn, graph.add("Mul", [natural, factor])[0], value.held)]


def _log1p(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """Take the logarithm of x + 1 as rounded, and add what its rounding lost: small numbers keep their digits."""
    x, one = graph.held(value), graph.constant(np.array(1, value.dtype))
    (rounded,) = graph.add("Add", [x, one])
    (logarithm,) = graph.add("Log", [rounded])
    (kept,) = graph.add("Sub", [rounded, one])
    (lost,) = graph.add("Sub", [x, kept])
    (correction,) = graph.add("Div", [lost, rounded])
    (corrected,) = graph.add("Add", [logarithm, correction])
    # Where nothing was lost the correction is 0, but for -1 and infinity, where it is no number.
    (exact,) = graph.add("Equal", [kept, x])
    return [output(eqn, graph.add("Where", [exact, logarithm, corrected])[0], value.held)]


def _expm1(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """Multiply tanh(x / 2) by exp(x) + 1, which is the same number: small numbers keep their digits."""
    x = graph.held(value)
    half, one = (graph.constant(np.array(number, value.dtype)) for number in (0.5, 1))
    (tanh,) = graph.add("Tanh", graph.add("Mul", [x, half]))
    (sum_,) = graph.add("Add", [*graph.add("Exp", [x]), one])
    return [output(eqn, graph.add("Mul", [tanh, sum_])[0], value.held)]


def _erf(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    if value.dtype != np.float32:  # ONNX has others, ONNX Runtime does not
        raise unsupported(eqn)
    return elementwise("Erf")(graph, eqn, value)


def _erfc(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """Subtract erf from 1, to the last digit of a number near 1: where less is left, from x = 4 on, it is 0."""
    (erf,) = _erf(graph, eqn, value)
    (name,) = graph.add("Sub", [graph.constant(np.array(1, value.dtype)), erf.name])
    return [output(eqn, name, value.held)]


def _round(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    if eqn.params["rounding_method"] == RoundingMethod.TO_NEAREST_EVEN:
        return elementwise("Round")(graph, eqn, value)
    x, half, one = graph.held(value), *(graph.constant(np.array(number, value.dtype)) for number in (0.5, 1))
    # By what is above the integer below: the sum of a half and a number just below it is rounded up to 1.
    (size,) = graph.add("Abs", [x])
    (below,) = graph.add("Floor", [size])
    (up,) = graph.add("GreaterOrEqual", [*graph.add("Sub", [size, below]), half])
    (size,) = graph.add("Where", [up, *graph.add("Add", [below, one]), below])
    return [output(eqn, graph.add("Mul", [size, *graph.add("Sign", [x])])[0], value.held)]


def _polynomial(graph: Graph, eqn: Any, value: Value, *coefficients: Value) -> list[Value]:
    """Apply Horner's rule to the coefficients, of which that of the lowest power comes first."""
    name, (*lower, highest) = graph.held(value), coefficients
    total = graph.held(highest)
    for coefficient in reversed(lower):
        (product,) = graph.add("Mul", [total, name])
        (total,) = graph.add("Add", [product, graph.held(coefficient)])
    return [output(eqn, total, joint((value, *coefficients)))]


FORMS: dict[str, Form] = {
    "abs": elementwise("Abs"),
    "add": elementwise("Add", np.add),
    "and": _bitwise("And"),
    "ceil": elementwise("Ceil"),
    "clamp": _clamp,
    "convert_element_type": _convert,
    "copy": _same,
    "cos": elementwise("Cos"),
    "div": elementwise("Div", _quotient),
    "eq": elementwise("Equal"),
    "erf": _erf,
    "erfc": _erfc,
    "exp": elementwise("Exp"),
    "expm1": _expm1,
    "floor": elementwise("Floor"),
    "ge": elementwise("GreaterOrEqual"),
    "gt": elementwise("Greater"),
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "le": elementwise("LessOrEqual"),
    "log": elementwise("Log"),
    "log1p": _log1p,
    "log2": _log2,
    "logistic": elementwise("Sigmoid"),
    "lt": elementwise("Less"),
    "max": _max,
    "min": elementwise("Min"),
    "mul": elementwise("Mul", np.multiply),
    "ne": chain("Equal", "Not"),
    "neg": elementwise("Neg"),
    "not": _bitwise("Not"),
    "optimization_barrier": _same,
    "or": _bitwise("Or"),
    "polynomial": _polynomial,
    "pow": elementwise("Pow"),
    "rem": elementwise("Mod", fmod=1),
    "round": _round,
    "rsqrt": chain("Sqrt", "Reciprocal"),
    "select_n": _select,
    "sign": elementwise("Sign"),
    "sin": elementwise("Sin"),
    "sqrt": elementwise("Sqrt", np.sqrt),
    "square": _square,
    "stop_gradient": _same,
    "sub": elementwise("Sub", np.subtract),
    "tanh": elementwise("Tanh"),
    "xor": _bitwise("Xor"),
}
