"""Multiplications and additions of the convolutions and matrix products of a compiled program, from their shapes."""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mask_rcnn_jax.planning.hlo import Array, Computation, Instruction, Program, bits

# Numbers of 16 bits or fewer; float32 as layers have it, which devices may round to fewer bits; float32 in full.
Precision = Literal["half", "single", "exact"]


@dataclass(frozen=True)
class Product:
    """`operations` are multiplications and additions, of numbers other than padding."""

    operations: float
    precision: Precision


def products(program: Program, computation: Computation, instruction: Instruction) -> Iterator[Product]:
    """Yield the products that an instruction computes, those inside of a fusion included."""
    for name in instruction.called("calls") if instruction.opcode == "fusion" else ():
        inside = program.computations[name]
        for each in inside:
            yield from products(program, inside, each)
    operands = [operand.arrays[0] for operand in computation.operands(instruction) if operand.arrays]
    operations = _operations(instruction, operands)
    if operations:
        yield Product(operations, _precision(instruction, operands))


def _operations(instruction: Instruction, operands: Sequence[Array]) -> float:
    target = instruction.attribute(r'custom_call_target="([^"]*)"') or ""
    if instruction.opcode == "dot" or target.startswith("__cublas$"):
        return _of_dot(instruction, operands)
    if instruction.opcode == "convolution" or target.startswith("__cudnn$conv"):
        result, first, second = instruction.arrays[0], *operands[:2]
        if target == "__cudnn$convBackwardInput":
            return _of_convolution(instruction, result, second, first)
        if target == "__cudnn$convBackwardFilter":
            return _of_convolution(instruction, first, result, second)
        return _of_convolution(instruction, first, second, result)
    return 0


def _precision(instruction: Instruction, operands: Sequence[Array]) -> Precision:
    if max(bits(operand.dtype) for operand in operands[:2]) <= 16:
        return "half"
    asked = instruction.attribute(r"operand_precision=\{([^}]*)\}") or instruction.attribute(
        r'"operand_precision":\[([^\]]*)\]'
    )
    return "exact" if "highest" in (asked or "").lower() else "single"


def _of_dot(instruction: Instruction, operands: Sequence[Array]) -> float:
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    if contracted is None:
        found = instruction.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]') or ""
        contracted = found.replace('"', "")
    sides = [operands[0].dims[int(number)] for number in contracted.split(",") if number]
    return 2.0 * instruction.arrays[0].elements * math.prod(sides)


def _of_convolution(instruction: Instruction, image: Array, kernel: Array, result: Array) -> float:
    """Count pairs of a kernel's cell and an image's in each direction, without the cells that are padding or gaps."""
    labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|$)") or ""
    of_image, of_kernel, of_result = re.split(r"_|->", labels)
    total = 2.0 * result.dims[of_result.index("b")]
    total *= kernel.dims[of_kernel.index("i")] * kernel.dims[of_kernel.index("o")]
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    for number, direction in enumerate(sorted(label for label in of_kernel if label.isdigit())):
        length, cells = image.dims[of_image.index(direction)], result.dims[of_result.index(direction)]
        total *= _pairs(length, cells, _Window.parse(window, number))
    return total


@dataclass(frozen=True)
class _Window:
    """A convolution in one direction: cells of the kernel, stride, padding before, gaps in the image and kernel."""

    size: int
    stride: int
    before: int
    image_step: int
    kernel_step: int

    @staticmethod
    def parse(text: str, direction: int) -> "_Window":
        def value(key: str, default: str) -> str:
            found = re.search(rf"\b{key}=(\S+)", text)
            return found[1].split("x")[direction] if found else default

        steps = [int(value(key, "1")) for key in ("size", "stride", "lhs_dilate", "rhs_dilate")]
        size, stride, image_step, kernel_step = steps
        return _Window(size, stride, int(value("pad", "0_0").split("_")[0]), image_step, kernel_step)


@functools.lru_cache(maxsize=10_000)
def _pairs(length: int, cells: int, window: _Window) -> int:
    """Count the pairs of a result's cell and a kernel's that meet one of the `length` cells of the image."""
    first = np.arange(cells)[:, None] * window.stride - window.before
    places = first + np.arange(window.size) * window.kernel_step
    inside = (places >= 0) & (places <= (length - 1) * window.image_step)
    return int((inside & (places % window.image_step == 0)).sum())
