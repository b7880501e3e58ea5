"""Reads pickled tensors without running what is in the pickle, and without torch.

A pickle is a program: it names functions of any installed package and calls them. Here the names are looked up in one
explicit table, whose entries build inert stand-ins for tensors and containers; any other name ends the reading. What
the stand-ins are given is checked when they become arrays: PyTorch's zip files (`torch.save` since 1.6), its older
stream, and pickles of NumPy arrays (Detectron2's and Detectron1's model zoos) all pass through here.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np

from mask_rcnn_jax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's stream
_PROTOCOL = 1001  # the second

# PyTorch's storages and dtypes by name. NumPy has no bfloat16: its bits are read, and widened.
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_DTYPES = {name: np.dtype(name) for name in ({*_STORAGES.values()} - {"bfloat16"}) | {"uint16", "uint32", "uint64"}}
_DTYPES["bfloat16"] = np.dtype("uint16")


class Pickled:
    """A tensor as a pickle describes it; whether it can be is found when it becomes an array."""

    @property
    def nbytes(self) -> int:
        """Bytes that the array will take, which a window without strides may have many more of than its storage."""
        raise NotImplementedError

    def array(self) -> np.ndarray:
        """The tensor, contiguous and in this machine's byte order. Raises where the description makes no sense."""
        raise NotImplementedError


def read_zip(archive: zipfile.ZipFile, name: str, advice: str) -> Any:
    """The tree of containers and `Pickled` tensors in a file of `torch.save`.

    UserError for a forbidden name, with the `advice` of what to save in its place.
    """
    root = next(member for member in archive.namelist() if member.endswith("data.pkl")).removesuffix("data.pkl")
    if any(member.startswith(f"{root}code/") for member in archive.namelist()):
        raise UserError(f"{name} is a TorchScript program; save the model's state_dict() with torch.save instead")
    order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in archive.namelist() else "little"
    storages: dict[str, _Storage] = {}

    def load(reference: Any) -> _Storage:
        kind, dtype, key, *_ = reference
        if kind != "storage":
            raise ValueError(f"unknown reference {kind!r}")
        if key not in storages:
            storages[key] = _Storage(dtype, order, archive.read(f"{root}data/{key}"))
        return storages[key]

    return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), name, advice, load).load()


def read_stream(file: BinaryIO, name: str, advice: str) -> Any:
    """The tree of a pickle, or of PyTorch's stream, which is told by the number it begins with; else as `read_zip`."""
    storages: dict[str, _Storage] = {}

    def load(reference: Any) -> _Storage:
        kind, dtype, key, _, count, *view = reference
        if kind != "storage" or any(view):
            raise ValueError(f"unknown reference {kind!r}")
        return storages.setdefault(key, _Storage(dtype, "little", None, count))

    tree = _Unpickler(file, name, advice, load).load()
    if tree != _MAGIC:
        return tree
    if (protocol := _Unpickler(file, name, advice, load).load()) != _PROTOCOL:
        raise UserError(f"{name} was written by an unknown version of torch.save ({protocol}); save it again")
    order = "little" if _Unpickler(file, name, advice, load).load().get("little_endian", True) else "big"
    tree = _Unpickler(file, name, advice, load).load()
    for key in _Unpickler(file, name, advice, load).load():
        storage = storages[key]
        count = int.from_bytes(file.read(8), order)
        if count != storage.count:
            raise ValueError(f"a storage of {storage.count} elements where {count} are said to be")
        storage.order, storage.data = order, file.read(count * storage.itemsize)
    return tree


class _Unpickler(pickle._Unpickler):
    """Finds nothing but what the table holds.

    It is Python's own implementation, since that in C reserves its memo for the highest number that a pickle gives an
    object: ten bytes may ask for gigabytes.
    """

    def __init__(self, file: BinaryIO, name: str, advice: str, load: Callable[[Any], "_Storage"]):
        # Detectron1's pickles are Python 2's, whose strings are bytes.
        super().__init__(file, encoding="latin1")
        self._name, self._advice, self._load = name, advice, load

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise UserError(
                f"{self._name} asks for {module}.{name}, which could run code and is refused; {self._advice}"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        return self._load(pid)


# --- Stand-ins --------------------------------------------------------------------------------------------------------


class _Sealed(type):
    """A class that stays as it is: a pickle may set attributes of whatever the table gave it."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError(f"{name} cannot be set")


class _Container(dict, metaclass=_Sealed):
    """A dictionary, or an object of which nothing is kept."""

    __slots__ = ()

    def __init__(self, *content: Any):
        super().__init__(content[-1] if content and isinstance(content[-1], dict | list) else ())

    def __setstate__(self, state: Any) -> None:
        """Drops attributes, such as the versions of modules."""


class _Call:
    """A function of the table. It can be called, and not changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"{name} cannot be set")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


@dataclass
class _Storage:
    dtype: str
    order: str  # of bytes, "little" or "big"
    data: bytes | None  # in PyTorch's stream it follows the pickle
    count: int = 0  # elements

    @property
    def itemsize(self) -> int:
        return _DTYPES[self.dtype].itemsize


@dataclass
class _Tensor(Pickled):
    """PyTorch's tensor: a window with strides into a storage, which others may share."""

    storage: _Storage
    offset: int  # elements
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None  # where the storage is untyped

    @property
    def nbytes(self) -> int:
        name = self.dtype or self.storage.dtype
        return math.prod(self.size) * (4 if name == "bfloat16" else _DTYPES[name].itemsize)

    def array(self) -> np.ndarray:
        name = self.dtype or self.storage.dtype
        dtype = _DTYPES[name].newbyteorder(">" if self.storage.order == "big" else "<")
        strides = tuple(step * dtype.itemsize for step in self.stride)
        # NumPy checks that the window lies inside the buffer.
        window = np.ndarray(tuple(self.size), dtype, self.storage.data, self.offset * dtype.itemsize, strides)
        if name != "bfloat16":
            return window.astype(_DTYPES[name], order="C")
        bits = window.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)


@dataclass
class _NumpyDtype:
    code: str
    order: Literal["<", ">", "="] = "="

    def __setstate__(self, state: Any) -> None:
        self.order = "<" if state[1] == "<" else ">" if state[1] == ">" else "="

    def dtype(self) -> np.dtype:
        dtype = np.dtype(str(self.code))
        if dtype.kind not in "fiub":
            raise TypeError(f"{self.code} is no type of numbers")
        return dtype.newbyteorder(self.order)


@dataclass
class _NumpyArray(Pickled):
    """NumPy's array or scalar. NumPy's own unpickling trusts what it reads, so it is not used."""

    shape: tuple[int, ...] = (0,)
    kind: _NumpyDtype = field(default_factory=lambda: _NumpyDtype("f4"))
    fortran: bool = False
    data: Any = b""

    def __setstate__(self, state: Any) -> None:
        *_, self.shape, self.kind, self.fortran, self.data = state

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def array(self) -> np.ndarray:
        if not isinstance(self.kind, _NumpyDtype):
            raise TypeError(f"{self.kind!r} is no type of numbers")
        dtype = self.kind.dtype()
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        array = np.ndarray(tuple(self.shape), dtype, data, order="F" if self.fortran else "C")
        return array.astype(dtype.newbyteorder("="), order="C")


_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Container,
    ("collections", "defaultdict"): _Container,
    ("collections", "Counter"): _Container,
    ("argparse", "Namespace"): _Container,  # the arguments of torchvision's reference training
    ("mmengine.logging.history_buffer", "HistoryBuffer"): _Container,  # losses, beside MMDetection's weights
    ("_codecs", "encode"): _Call(lambda text, _: text.encode("latin1")),  # how protocol 2 writes bytes
    ("torch._utils", "_rebuild_tensor"): _Call(lambda *arguments: _Tensor(*arguments[:4])),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(lambda *arguments: _Tensor(*arguments[:4])),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(lambda *arguments: _Tensor(*arguments[:4], dtype=arguments[6])),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
    ("torch", "Size"): _Call(lambda size=(): tuple(size)),
    ("torch", "device"): _Call(lambda *_: None),
    ("torch.storage", "UntypedStorage"): "uint8",
    **{("torch", storage): dtype for storage, dtype in _STORAGES.items()},
    **{("torch", dtype): dtype for dtype in _DTYPES},
    ("detectron2.structures.boxes", "BoxMode"): _Call(lambda mode: mode),  # of its files of proposals
    ("numpy", "ndarray"): None,  # an argument only
    ("numpy", "dtype"): _Call(lambda code, *_: _NumpyDtype(code)),
    **{
        (f"numpy.{core}.{module}", function): call
        for core in ("core", "_core")
        for module, function, call in (
            ("multiarray", "_reconstruct", _Call(lambda *_: _NumpyArray())),
            ("multiarray", "scalar", _Call(lambda dtype, data: _NumpyArray((), dtype, False, data))),
            (
                "numeric",
                "_frombuffer",
                _Call(lambda data, dtype, *form: _NumpyArray(form[0], dtype, form[1] == "F", data)),
            ),
        )
    },
}
