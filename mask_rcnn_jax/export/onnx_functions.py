"""JAX's functions of numbers, such as powers and logarithms, as operations of ONNX."""

import math
from typing import Any

import numpy as np
from jax.lax import RoundingMethod

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_primitives import Form, chain, elementwise, joint, output, unsupported


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


FUNCTION_FORMS: dict[str, Form] = {
    "cos": elementwise("Cos"),
    "erf": _erf,
    "erfc": _erfc,
    "exp": elementwise("Exp"),
    "expm1": _expm1,
    "integer_pow": _integer_pow,
    "log": elementwise("Log"),
    "log1p": _log1p,
    "log2": _log2,
    "logistic": elementwise("Sigmoid"),
    "polynomial": _polynomial,
    "pow": elementwise("Pow"),
    "round": _round,
    "rsqrt": chain("Sqrt", "Reciprocal"),
    "sin": elementwise("Sin"),
    "sqrt": elementwise("Sqrt"),
    "square": _square,
    "tanh": elementwise("Tanh"),
}
