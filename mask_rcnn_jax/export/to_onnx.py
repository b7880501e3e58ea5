"""Writes a model as ONNX, for ONNX Runtime and other programs that read it.

The jaxpr of the whole program is translated equation by equation. Calls are inlined; loops become ONNX's Loop, and
choices its If.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import Jaxpr, Literal
from onnx import helper

from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.onnx_graph import Graph, Value, tensor_info
from mask_rcnn_jax.export.onnx_indexing import INDEXING_FORMS
from mask_rcnn_jax.export.onnx_networks import NETWORK_FORMS
from mask_rcnn_jax.export.onnx_primitives import FORMS, output, sparing, unsupported, where
from mask_rcnn_jax.export.onnx_rois import ROI_CALLS, ROI_FORMS, onnx_pool
from mask_rcnn_jax.export.onnx_shapes import SHAPE_FORMS, reverse
from mask_rcnn_jax.export.program import Exportable, abstract_inputs, metadata, program
from mask_rcnn_jax.export.runtime import METADATA_KEY
from mask_rcnn_jax.models.layers import IN_TURN

OPSET = 18
_IR_VERSION = 9
_CALLS = {"jit": "jaxpr", "remat2": "jaxpr", "closed_call": "call_jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_FORMS = FORMS | SHAPE_FORMS | INDEXING_FORMS | NETWORK_FORMS | ROI_FORMS


def export_onnx(exportable: Exportable, path: Path) -> None:
    """Writes the file `path`, with inputs `images` and `sizes`. Raises UserError for an open batch."""
    model = onnx_model(exportable)
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString())


def onnx_model(exportable: Exportable) -> onnx.ModelProto:
    """The whole program as an ONNX model, its networks in float32."""
    settings = exportable.settings
    if settings.batch is None:
        raise UserError("an ONNX file takes a fixed number of images a call; give --batch a number")
    run = program(replace(exportable.config, dtype="float32"), settings, onnx_pool)
    inputs = abstract_inputs(settings, settings.batch)
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(exportable.variables, *inputs)
    graph = Graph()
    weights = [_constant(leaf) for leaf in jax.tree.leaves(exportable.variables)]
    names = ("images", "sizes")
    arguments = [Value(x.shape, x.shape, x.dtype, name) for name, x in zip(names, inputs, strict=True)]
    results = translate(graph, closed, [*weights, *arguments])
    outputs = []
    for (name, shape), value in zip(sorted(shapes.items()), results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.full(value)], [name]))
        outputs.append(tensor_info(name, shape.dtype, shape.shape))
    described = [tensor_info(name, x.dtype, x.shape) for name, x in zip(names, inputs, strict=True)]
    model = helper.make_model(
        graph.proto("mask_rcnn", described, outputs),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="mask-rcnn-jax",
    )
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata(exportable))})
    return model


def translate(graph: Graph, closed: Any, arguments: Sequence[Value]) -> list[Value]:
    """Append the nodes of a jaxpr, closed or without constants, to the graph; return its results."""
    jaxpr: Jaxpr = getattr(closed, "jaxpr", closed)
    constants = getattr(closed, "consts", ())
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(_constant, constants), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval  # a Python number says less than it does
        return _constant(np.asarray(atom.val, aval.dtype))

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        values |= dict(zip(eqn.outvars, _equation(graph, eqn, inputs), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    name, shapes = eqn.primitive.name, [out.aval.shape for out in eqn.outvars]
    if shapes and all(0 in shape for shape in shapes):
        # Nothing is left to compute, and ONNX's Reshape and Expand would take a side of 0 for another.
        return [_constant(np.zeros(out.aval.shape, out.aval.dtype)) for out in eqn.outvars]
    if name in _CALLS and eqn.params.get("name") in ROI_CALLS:
        return ROI_CALLS[eqn.params["name"]](graph, eqn, *inputs)
    if name in _CALLS:
        return translate(graph, eqn.params[_CALLS[name]], inputs)
    if name == "platform_index":
        return [_constant(np.int32(0))]  # which only the next equation reads
    if name == "cond":
        return _cond(graph, eqn, inputs)
    if name == "while":
        return _while(graph, eqn, inputs)
    if name == "scan":
        return _scan(graph, eqn, inputs)
    form = _FORMS.get(name)
    if form is None:
        raise unsupported(eqn)
    return form(graph, eqn, *inputs)


def _cond(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Nest an If in another for each branch but two: the first of those that are left, or one of the rest."""
    which, *operands = inputs
    branches, number = eqn.params["branches"], graph.full(which)
    if eqn.params.get("branches_platforms") is not None:
        # The form for platforms that are not named, but for RoIs, of which a CPU's leaves out what is padding.
        in_turn = IN_TURN in str(eqn.source_info.name_stack)
        return translate(graph, branches[0 if in_turn else -1], operands)
    if not eqn.outvars:
        raise unsupported(eqn)

    def branch(outer: Graph, first: int, is_last: bool) -> onnx.GraphProto:
        inner = Graph(outer=outer)
        if is_last:
            names = [inner.full(value) for value in translate(inner, branches[first], operands)]
        else:
            names = choice(inner, first)
        # Identities: a branch may return what it was given, which ONNX does not take.
        names = [inner.add("Identity", [name])[0] for name in names]
        pairs = zip(names, eqn.outvars, strict=True)
        return inner.proto("branch", [], [tensor_info(name, out.aval.dtype, out.aval.shape) for name, out in pairs])

    def choice(outer: Graph, first: int) -> list[str]:
        (is_first,) = outer.add("Equal", [number, outer.constant(np.array(first, which.dtype))])
        then, otherwise = branch(outer, first, True), branch(outer, first + 1, first + 2 == len(branches))
        return outer.add("If", [is_first], len(eqn.outvars), then_branch=then, else_branch=otherwise)

    if len(branches) == 1:
        return translate(graph, branches[0], operands)
    return [output(eqn, name, number=position) for position, name in enumerate(choice(graph, 0))]


def _while(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A Loop that runs while its condition, computed before it and at the end of each round, holds.

    `jax.vmap` makes a condition for each row: the loop then runs while any holds, and keeps the rows that are done.
    """
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    cond_consts, rest = _divided(inputs, eqn.params["cond_nconsts"])
    body_consts, start = _divided(rest, eqn.params["body_nconsts"])

    def condition(graph: Graph, carry: list[Value]) -> Value:
        return translate(graph, cond, [*cond_consts, *carry])[0]

    def any_of(graph: Graph, rows: Value) -> str:
        name = graph.full(rows)
        if rows.shape:
            (highest,) = graph.add("ReduceMax", [graph.cast(name, np.int32)], keepdims=0)
            name = graph.cast(highest, bool)
        return name

    def round_of(inner: Graph, _: str, carry: list[Value]) -> tuple[str, list[Value], list[Value]]:
        following = translate(inner, body, [*body_consts, *carry])
        rows = condition(inner, carry)
        if rows.shape:
            following = [_chosen(inner, rows, *pair) for pair in zip(following, carry, strict=True)]
        return any_of(inner, condition(inner, following)), following, []

    return _loop(graph, eqn, "", any_of(graph, condition(graph, start)), start, round_of)


def _chosen(graph: Graph, rows: Value, then: Value, otherwise: Value) -> Value:
    """`then` in the rows (leading axes) that are true, else `otherwise`."""
    sides = (*rows.shape, *[1] * (len(then.shape) - len(rows.shape)))
    (condition,) = graph.add("Reshape", [graph.full(rows), graph.ints(sides)])
    name = where(graph, condition, graph.full(then), graph.full(otherwise), logical=then.dtype == bool)
    return Value(then.shape, then.shape, then.dtype, name)


def _scan(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A Loop of known length, which stacks what each round yields, from the last row on where it is reversed."""
    params = eqn.params
    num_consts, num_carry = _scan_counts(params)
    consts, rest = _divided(inputs, num_consts)
    start, sequences = _divided(rest, num_carry)
    last = np.array(params["length"] - 1, np.int64)
    sequences = [graph.whole(value) for value in sequences]
    # Rows keep the order of the others of their axes.
    orders = [(0, *(axis for axis in value.axes if axis != 0)) for value in sequences]
    names = [graph.ordered(value, order) for value, order in zip(sequences, orders, strict=True)]

    def round_of(inner: Graph, step: str, carry: list[Value]) -> tuple[str, list[Value], list[Value]]:
        if params["reverse"]:
            (step,) = inner.add("Sub", [inner.constant(last), step])
        rows = []
        for name, value, order in zip(names, sequences, orders, strict=True):
            (row,) = inner.add("Gather", [name, step], axis=0)
            shape, of_row = value.shape[1:], sparing(axis - 1 for axis in order[1:])
            rows.append(Value(shape, shape, value.dtype, row, order=of_row))
        results = translate(inner, params["jaxpr"], [*consts, *carry, *rows])
        return inner.constant(np.array(True)), *_divided(results, num_carry)

    results = _loop(graph, eqn, graph.constant(np.array(params["length"], np.int64)), "", start, round_of)
    carry, stacked = _divided(results, num_carry)
    return [*carry, *(reverse(graph, value, [0]) for value in stacked)] if params["reverse"] else results


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many inputs are constants, and how many are carried; jax 0.12 tells it by their structure."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def _loop(graph: Graph, eqn: Any, length: str, first: str, start: list[Value], round_of: Any) -> list[Value]:
    """ONNX's Loop. `round_of` takes the body's graph, the round's number and the carry; it returns whether to go on,
    the next carry, and what is stacked."""
    inner = Graph(outer=graph)
    step, going = inner.fresh("step"), inner.fresh("going")
    carry = [Value(value.shape, value.shape, value.dtype, inner.fresh("carry")) for value in start]
    again, following, stacked = round_of(inner, step, carry)
    described = [tensor_info(step, np.int64, ()), tensor_info(going, bool, ())]
    described += [tensor_info(value.name, value.dtype, value.shape) for value in carry]
    # Identities: a body may return what it was given, or something from outside, which ONNX does not take.
    kept = [inner.add("Identity", [again])[0]]
    kept += [inner.add("Identity", [inner.full(value)])[0] for value in (*following, *stacked)]
    results = [tensor_info(kept[0], bool, ())]
    results += [
        tensor_info(name, value.dtype, value.shape)
        for name, value in zip(kept[1:], (*following, *stacked), strict=True)
    ]
    inputs = [length, first, *(graph.full(value) for value in start)]
    names = graph.add("Loop", inputs, len(eqn.outvars), body=inner.proto("body", described, results))
    return [
        Value(out.aval.shape, out.aval.shape, out.aval.dtype, name)
        for out, name in zip(eqn.outvars, names, strict=True)
    ]


def _divided(values: list[Value], count: int) -> tuple[list[Value], list[Value]]:
    return values[:count], values[count:]


def _constant(array: Any) -> Value:
    array = np.asarray(array)
    return Value(array.shape, array.shape, array.dtype, constant=array)
