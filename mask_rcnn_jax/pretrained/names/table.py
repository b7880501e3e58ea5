"""Tables of names: which tensor of a file is which of this project's, and how its axes are turned.

A row names a layer by a pattern, its place here by a template, and a layout for the tensors below it. Tensors here are
HWIO kernels and [in, out] matrices; background is the last class, and has neither boxes nor masks.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# A tensor of the file and the side of the box head's RoI features give the tensor of this project.
Transform = Callable[[np.ndarray, int], np.ndarray]
Layout = Mapping[str, tuple[str, Transform]]  # last part of the tensor's name -> what follows the layer's place here


def same(tensor: np.ndarray, side: int) -> np.ndarray:
    return tensor


def to_hwio(tensor: np.ndarray, side: int) -> np.ndarray:
    """From OIHW, also of grouped convolutions, where I is that of a group."""
    return tensor.transpose(2, 3, 1, 0)


def iohw_to_hwio(tensor: np.ndarray, side: int) -> np.ndarray:
    """Of transposed convolutions; nothing is flipped."""
    return tensor.transpose(2, 3, 0, 1)


def transposed(tensor: np.ndarray, side: int) -> np.ndarray:
    return tensor.transpose(1, 0)


def flat_chw_to_hwc(tensor: np.ndarray, side: int) -> np.ndarray:
    """[out, C H W], the first layer after flattened RoI features, to [H W C, out]."""
    grid = tensor.reshape(tensor.shape[0], -1, side, side)
    return grid.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])


def pointwise(tensor: np.ndarray, side: int) -> np.ndarray:
    """[out, in, 1, 1] or [out, in, 1] to [in, out]."""
    return tensor.reshape(tensor.shape[:2]).transpose(1, 0)


def background_last(tensor: np.ndarray, side: int) -> np.ndarray:
    """[1 + classes, ...], background first, to [..., classes + 1]."""
    return np.roll(tensor, -1, axis=0).T


def boxes_of_foreground(tensor: np.ndarray, side: int) -> np.ndarray:
    """[4 (1 + classes), ...], background first, to [..., 4 classes]."""
    return tensor[4:].T


def masks_of_foreground(tensor: np.ndarray, side: int) -> np.ndarray:
    return tensor[1:]


def pointwise_masks_of_foreground(tensor: np.ndarray, side: int) -> np.ndarray:
    return pointwise(tensor[1:], side)


CONV: Layout = {"weight": ("/kernel", to_hwio), "bias": ("/bias", same)}
DECONV: Layout = {"weight": ("/kernel", iohw_to_hwio), "bias": ("/bias", same)}
LINEAR: Layout = {"weight": ("/kernel", transposed), "bias": ("/bias", same)}
FIRST_LINEAR: Layout = {"weight": ("/kernel", flat_chw_to_hwc), "bias": ("/bias", same)}
POINTWISE: Layout = {"weight": ("/kernel", pointwise), "bias": ("/bias", same)}
MASK_PREDICTOR: Layout = {"weight": ("_kernel", pointwise), "bias": ("_bias", same)}
NORM: Layout = {
    "weight": ("/scale", same),
    "bias": ("/bias", same),
    "running_mean": ("/mean", same),
    "running_var": ("/var", same),
}


@dataclass(frozen=True)
class Row:
    """`pattern` matches the whole name of a layer; `{0}` in `target` is its first group, `{0+1}` that number plus 1."""

    pattern: str
    target: str
    layout: Layout


@dataclass(frozen=True)
class Table:
    rows: tuple[Row, ...]  # the first that matches counts
    ignored: str  # pattern of tensors that a model does without


@dataclass(frozen=True, eq=False)
class Found:
    """A tensor of a file and how it is turned."""

    name: str
    tensor: np.ndarray
    transform: Transform = same

    def turned(self, side: int) -> np.ndarray | None:
        """The tensor as this project has it; None where it has not even the right number of axes."""
        try:
            return self.transform(self.tensor, side)
        except (ValueError, IndexError):
            return None


def translate(tensors: Mapping[str, np.ndarray], table: Table) -> tuple[dict[str, Found], list[str]]:
    """The tensors by their path here, and the names that have none. What is ignored is in neither.

    Of two names for one place the second is among those without a place.
    """
    found: dict[str, Found] = {}
    unknown = []
    for name, tensor in tensors.items():
        if re.fullmatch(table.ignored, name):
            continue
        target, transform = _look_up(name, table.rows)
        if target is None or target in found:
            unknown.append(name)
        else:
            found[target] = Found(name, tensor, transform)
    return found, unknown


def _look_up(name: str, rows: tuple[Row, ...]) -> tuple[str | None, Transform]:
    # Caffe2 separates by "_" what others do by ".".
    layer, _, last = name.rpartition("." if "." in name else "_")
    for row in rows:
        if last in row.layout and (match := re.fullmatch(row.pattern, layer)):
            suffix, transform = row.layout[last]
            fill = functools.partial(_fill, match.groups())
            return re.sub(r"\{(\d)(\+\d)?\}", fill, row.target) + suffix, transform
    return None, same


def _fill(groups: tuple[str, ...], place: re.Match[str]) -> str:
    group = groups[int(place[1])]
    return group if place[2] is None else str(int(group) + int(place[2]))
