"""An ONNX graph under construction, and the values that flow through it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
    operations broadcast by themselves, so that no copy is made before one is needed.
    """

    shape: tuple[int, ...]
    held: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str = ""
    constant: np.ndarray | None = None


@dataclass
class Graph:
    """Nodes of one graph, the main one or the body of a loop, which also sees what is `outer`."""

    outer: "Graph | None" = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
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
        """The name of a constant."""
        array = np.asarray(array)
        small = array.size <= 16
        # ONNX infers shapes from small ones, such as the axes of a sum, only where they stand in the same graph.
        graph = self if small else self.root
        key = f"{array.dtype} {array.shape} {array.tolist()}" if small else self.fresh()
        if key not in graph.constants:
            whole = np.ascontiguousarray(array).reshape(array.shape)
            graph.constants[key] = numpy_helper.from_array(whole, self.fresh("constant"))
        return graph.constants[key].name

    def ints(self, values: Iterable[Any]) -> str:
        return self.constant(np.array([int(value) for value in values], np.int64))

    def held(self, value: Value) -> str:
        """The tensor of a value as it is held."""
        return value.name if value.constant is None else self.constant(value.constant)

    def full(self, value: Value) -> str:
        """The tensor of a value with its whole shape."""
        name = self.held(value)
        return name if value.held == value.shape else self.add("Expand", [name, self.ints(value.shape)])[0]

    def cast(self, name: str, dtype: Any) -> str:
        return self.add("Cast", [name], to=element_type(dtype))[0]

    def proto(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
        """The finished graph; `inputs` and `outputs` are `tensor_info`."""
        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=list(self.constants.values()))


def element_type(dtype: Any) -> int:
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise UserError(f"ONNX has no form yet of arrays of {name}; export to StableHLO")
    return _TYPES[name]


def tensor_info(name: str, dtype: Any, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(dtype), shape)
