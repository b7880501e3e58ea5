"""An ONNX graph under construction, and the values that flow through it."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mask_rcnn_jax.errors import UserError

_TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint32": TensorProto.UINT32,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


@dataclass(frozen=True, eq=False)
class Value:
    """An array: the tensor `name` of the graph, or a constant.

    Where a side of `held` is 1 and that of `shape` is not, the array is that tensor broadcast: ONNX's elementwise
    operations broadcast by themselves, so that no copy is made before one is needed. Nor is one made to transpose: axis
    `k` of the tensor is axis `order[k]` of the array. Convolutions are channels-first in ONNX and channels-last in JAX;
    what lies between two of them stays as the first left it.
    """

    shape: tuple[int, ...]
    held: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str = ""
    constant: np.ndarray | None = None
    order: tuple[int, ...] = ()  # empty: the array's own, as that of every constant
    flattened: "Value | None" = None  # the transposed array that this one is a reshape of

    @property
    def axes(self) -> tuple[int, ...]:
        """The axis of the array that each axis of the tensor is."""
        return self.order or tuple(range(len(self.shape)))


@dataclass
class Graph:
    """Nodes of one graph, the main one or the body of a loop, which also sees what is `outer`."""

    outer: "Graph | None" = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    transposed: dict[tuple[Any, ...], str] = field(default_factory=dict)  # by the tensor's name and the permutation
    counter: int = 0

    @property
    def root(self) -> "Graph":
        return self if self.outer is None else self.outer.root

    def fresh(self, prefix: str = "t") -> str:
        """A tensor's name that no other has, and no output either: these are identifiers."""
        self.root.counter += 1
        return f"{prefix}.{self.root.counter}"

    def add(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Appends a node; returns the names of its outputs."""
        names = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operation, list(inputs), names, **attributes))
        return names

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant. Equal ones, such as the weights of what is applied to several levels, are one.

        It stands in the graph that reads it: ONNX infers shapes from axes, and ONNX Runtime packs the weights of
        convolutions, only there.
        """
        array = np.asarray(array)
        whole = np.ascontiguousarray(array).reshape(array.shape)
        content = array.tolist() if array.size <= 16 else hashlib.sha256(whole.data).hexdigest()
        key = f"{array.dtype} {array.shape} {content}"
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(whole, self.fresh("constant"))
        return self.constants[key].name

    def ints(self, values: Iterable[Any]) -> str:
        return self.constant(np.array([int(value) for value in values], np.int64))

    def own(self, value: Value) -> str:
        """The tensor of a value as it is held, its axes in their own order."""
        return value.name if value.constant is None else self.constant(value.constant)

    def ordered(self, value: Value, order: Sequence[int]) -> str:
        """The tensor of a value as it is held, its axes in this order."""
        order = tuple(int(axis) for axis in order)
        if value.constant is not None:
            return self.constant(value.constant.transpose(order))
        perm = [value.axes.index(axis) for axis in order]
        if value.axes == order or math.prod(value.held) == 1:
            return value.name
        key, graph = (value.name, *perm), self
        while graph is not None and key not in graph.transposed:
            graph = graph.outer
        if graph is None:
            graph = self
            (self.transposed[key],) = self.add("Transpose", [value.name], perm=perm)
        return graph.transposed[key]

    def held(self, value: Value) -> str:
        """The tensor of a value as it is held, its axes in the array's order."""
        return self.ordered(value, range(len(value.shape)))

    def whole(self, value: Value) -> Value:
        """A value whose tensor has its whole shape."""
        if value.held == value.shape:
            return value
        sides = self.ints(value.shape[axis] for axis in value.axes)
        return replace(value, held=value.shape, name=self.add("Expand", [self.own(value), sides])[0], constant=None)

    def full(self, value: Value) -> str:
        """The tensor of a value with its whole shape, its axes in the array's order."""
        return self.held(self.whole(value))

    def cast(self, name: str, dtype: Any) -> str:
        return self.add("Cast", [name], to=element_type(dtype))[0]

    def proto(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
        """The finished graph without what nothing depends on; `inputs` and `outputs` are `tensor_info`."""
        needed, nodes = {output.name for output in outputs}, []
        for node in reversed(self.nodes):
            if needed.isdisjoint(node.output):
                continue
            nodes.append(node)
            needed |= _inputs(node)
        constants = [constant for constant in self.constants.values() if constant.name in needed]
        return helper.make_graph(nodes[::-1], name, inputs, outputs, initializer=constants)


def _inputs(node: onnx.NodeProto) -> set[str]:
    """The names of what a node reads, also in its branches or its body."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    inner = [_inputs(one) for body in bodies for one in body.node]
    return set(node.input).union(*inner, *({result.name for result in body.output} for body in bodies))


def element_type(dtype: Any) -> int:
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise UserError(f"ONNX has no form yet of arrays of {name}; export to StableHLO")
    return _TYPES[name]


def tensor_info(name: str, dtype: Any, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(dtype), shape)
