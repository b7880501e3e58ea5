"""Files of weights as named arrays, whatever wrote them. Nothing that is in a file is ever run."""

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
import safetensors

from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.pretrained.pickles import Pickled, read_stream, read_zip

FORMATS = ".pth, .pkl, .safetensors and .npz"

# Its own functions for NumPy know bfloat16 in some versions only.
_SAFETENSORS = {f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)}
_SAFETENSORS |= {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "BF16": jnp.bfloat16}

# What a file may take in memory: views share storages, bfloat16 doubles and compression helps, but never by much.
_MOST_TIMES, _MOST_BYTES = 4, 1 << 28

_WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")  # under which checkpoints keep their tensors
_PREFIXES = ("module.", "model.")  # that wrappers for parallel training, and Lightning, put before every name


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by the names they have there, in their layout there; bfloat16 becomes float32.

    Reads PyTorch's .pth (zip or the older stream), Detectron2's and Detectron1's .pkl, .safetensors, and .npz, told
    apart by their content. Raises UserError, in one sentence, for what is missing, damaged, of another kind, would
    run code, or would take much more memory than the file has bytes.
    """
    path = Path(path)
    if "\0" in str(path):  # as a configuration's may have
        raise UserError(f"{path} is not the name of a file")
    if is_folder(path):
        raise UserError(f"{path} is a folder, not a file of weights")
    try:
        with path.open("rb") as file:
            budget = _Budget(path, os.fstat(file.fileno()).st_size)
            tensors = {name: np.asarray(tensor, order="C") for name, tensor in _read(file, path, budget)}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; save the model's state_dict()")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


class _Budget:
    """The memory that the tensors of one file may still take."""

    def __init__(self, path: Path, size: int):
        self._path, self._size = path, size
        self._left = self._most = _MOST_TIMES * size + _MOST_BYTES

    def check(self, nbytes: int) -> None:
        """Raise `UserError` where so many bytes more are too many."""
        if nbytes > self._left:
            raise UserError(
                f"{self._path} has {self._size} bytes and would take more than {self._most} in memory; save the weights"
                " again without compression, and without views that are larger than what they show"
            )

    def take(self, nbytes: int) -> None:
        """Count bytes that are about to be used; raise `UserError` where they are too many."""
        self.check(nbytes)
        self._left -= nbytes


def _read(file: BinaryIO, path: Path, budget: _Budget) -> Iterator[tuple[str, np.ndarray]]:
    start = file.read(512)
    file.seek(0)
    _refuse_text(start, path)
    try:
        if start[:4] == b"PK\x03\x04":
            yield from _read_archive(file, path, budget)
        elif start[8:9] == b"{":
            for name, described in safetensors.deserialize(file.read()):
                dtype = np.dtype(_SAFETENSORS[described["dtype"]])
                tensor = np.frombuffer(described["data"], dtype).reshape(described["shape"])
                yield name, tensor.astype(np.float32) if dtype == jnp.bfloat16 else tensor
        elif start[:1] == b"\x80" or path.suffix == ".pkl":
            yield from _tensors(read_stream(file, str(path)), budget)
        else:
            raise UserError(f"{path} is no file of weights that can be read, which are {FORMATS}")
    except (UserError, OSError):
        raise
    except Exception as error:
        # What is damaged may fail anywhere, in three libraries.
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged or was not written to its end ({problem}); fetch it again") from None


def _refuse_text(start: bytes, path: Path) -> None:
    text = start.lstrip().lower()
    if not start:
        raise UserError(f"{path} is empty; fetch it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not weights: the download went wrong; fetch it again")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights; fetch them with `git lfs pull`")


def _read_archive(file: BinaryIO, path: Path, budget: _Budget) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        # No member gives more than it declares.
        budget.check(sum(member.file_size for member in archive.infolist()))
        if any(name.endswith("data.pkl") for name in names):
            yield from _tensors(read_zip(archive, str(path)), budget)
            return
        arrays = [name for name in names if name.endswith(".npy")]
        if not arrays:
            raise UserError(f"{path} is an archive without weights; what can be read is {FORMATS}")
        for name in arrays:
            yield name.removesuffix(".npy"), _read_npy(archive, name)


def _read_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz. NumPy's own reader reserves what the header asks for, whatever follows."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is of version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        data = file.read()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} is not what its header says")
    return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")


def _tensors(tree: Any, budget: _Budget) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors of a state dict, or of a checkpoint that holds one."""
    for wrapper in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            yield from _tensors(tree[wrapper], budget)
            return
    for name, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, Pickled):
            budget.take(value.nbytes)
            yield str(name), value.array()
