"""Files of weights as named arrays, whatever wrote them. Nothing that is in a file is ever run."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
import safetensors

from mask_rcnn_jax.arrays.budget import Budget
from mask_rcnn_jax.arrays.npz import read_npy
from mask_rcnn_jax.arrays.pickles import Pickled, read_stream, read_zip
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError

FORMATS = ".pth, .pkl, .safetensors and .npz"

# Its own functions for NumPy know bfloat16 in some versions only.
_SAFETENSORS = {f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)}
_SAFETENSORS |= {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "BF16": jnp.bfloat16}

_SMALLER = "save the weights again without compression, and without views that are larger than what they show"
_HARMLESS = "save only the state_dict() of the model, or its tensors as .safetensors"

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
            budget = Budget(path, os.fstat(file.fileno()).st_size, _SMALLER)
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


def _read(file: BinaryIO, path: Path, budget: Budget) -> Iterator[tuple[str, np.ndarray]]:
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
            yield from _tensors(read_stream(file, str(path), _HARMLESS), budget)
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


def _read_archive(file: BinaryIO, path: Path, budget: Budget) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        # No member gives more than it declares.
        budget.check(sum(member.file_size for member in archive.infolist()))
        if any(name.endswith("data.pkl") for name in names):
            yield from _tensors(read_zip(archive, str(path), _HARMLESS), budget)
            return
        arrays = [name for name in names if name.endswith(".npy")]
        if not arrays:
            raise UserError(f"{path} is an archive without weights; what can be read is {FORMATS}")
        for name in arrays:
            yield name.removesuffix(".npy"), read_npy(archive, name)


def _tensors(tree: Any, budget: Budget) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors of a state dict, or of a checkpoint that holds one."""
    for wrapper in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            yield from _tensors(tree[wrapper], budget)
            return
    for name, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, Pickled):
            budget.take(value.nbytes)
            yield str(name), value.array()
