"""The text of a compiled program (HLO), as computations of instructions whose shapes know their bytes on the device."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Bits of an element; types that are not here, such as tokens, hold no data.
_BITS = {"pred": 8, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_TILE = re.compile(r"T\(([\d,*]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """The shape of an array on the device.

    `layout` names its dimensions from the innermost outwards; `tile` is the block that the innermost ones are padded
    to, as on a TPU. `space` 0 is the device's memory, another is on the chip, or the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        """The number of elements, without padding."""
        return math.prod(self.dims)

    @property
    def data(self) -> int:
        """The bytes of the elements, wherever they lie."""
        return self.elements * bits(self.dtype) // 8

    @functools.cached_property
    def size(self) -> int:
        """The bytes that the array takes in the device's memory, with padding; 0 for one that lies elsewhere."""
        if self.space:
            return 0
        physical = [self.dims[i] for i in reversed(self.layout)] if self.layout else list(self.dims)
        physical = [1] * (len(self.tile) - len(physical)) + physical
        for i, side in enumerate(reversed(self.tile), 1):
            physical[-i] = -(-physical[-i] // side) * side
        return math.prod(physical) * bits(self.dtype) // 8


def bits(dtype: str) -> int:
    """Return the bits of an element, 0 for what holds no data."""
    found = re.fullmatch(r"(?:bf|[fsu])(\d+)\w*", dtype)
    return _BITS.get(dtype, int(found[1]) if found else 0)


@functools.lru_cache(maxsize=100_000)
def arrays(shape: str) -> tuple[Array, ...]:
    """Return the arrays of a shape's text, those of a tuple one after the other."""
    return tuple(_array(*found.groups()) for found in _ARRAY.finditer(shape))


def _array(dtype: str, dims: str, layout: str | None) -> Array:
    order, _, details = (layout or "").partition(":")
    tile, space = _TILE.search(details), _SPACE.search(details)
    return Array(
        dtype,
        tuple(int(side.lstrip("<=")) for side in dims.split(",") if side),
        tuple(map(int, filter(None, order.split(",")))),
        tuple(1 if side == "*" else int(side) for side in tile[1].split(",")) if tile else (),
        int(space[1]) if space else 0,
    )


@dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`. `literal` is what the parentheses hold beside names."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result."""
        return arrays(self.shape)

    @property
    def elements(self) -> int:
        """The number of elements of the result."""
        return sum(array.elements for array in self.arrays)

    @property
    def size(self) -> int:
        """The bytes of the result in the device's memory."""
        return sum(array.size for array in self.arrays)

    def attribute(self, pattern: str) -> str | None:
        """Return what the first group of a regular expression finds in the attributes."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    @functools.cached_property
    def op_name(self) -> str:
        """Scopes and the operation that the instruction was traced from; empty where the compiler says none."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    def called(self, key: str) -> list[str]:
        """Return the names of the computations that an attribute, such as `body`, names."""
        found = self.attribute(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)")
        return _NAME.findall(found or "")


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run."""

    instructions: Mapping[str, Instruction]
    root: Instruction

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Return the instructions whose results this one takes."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {int(each.literal): each for each in self if each.opcode == "parameter"}


@dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, and the one that it begins with."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Program:
    """Parse what `compiled.as_text()` says. Raises ValueError where it holds no program."""
    computations: dict[str, Computation] = {}
    entry = current = root = None
    found: dict[str, Instruction] = {}
    for line in text.splitlines():
        if current is None:
            if header := _COMPUTATION.match(line):
                current, found, root = header[2], {}, None
                entry = current if header[1] else entry
        elif line.startswith("}"):
            if root is not None:
                computations[current] = Computation(found, root)
            current = None
        elif match := _INSTRUCTION.match(line):
            is_root, name, shape, opcode, rest = match.groups()
            found[name] = _instruction(name, shape, opcode, rest)
            root = found[name] if is_root else root
    if entry is None or entry not in computations:
        raise ValueError("no compiled program: an ENTRY computation is missing")
    return Program(computations, computations[entry])


def _instruction(name: str, shape: str, opcode: str, rest: str) -> Instruction:
    """`rest` is what follows the opening parenthesis. The start of an operation stands for all of it."""
    end = _closing(rest)
    inside = rest[:end]
    operands = tuple(_NAME.findall(inside))
    if opcode.endswith("-start") and opcode not in ("copy-start", "async-start"):
        opcode, shape = opcode.removesuffix("-start"), _result_of_start(shape, len(operands))
    return Instruction(name, shape, opcode, operands, inside, rest[end + 1 :])


def _result_of_start(shape: str, operands: int) -> str:
    """Take the operands off a shape such as `((f32[8]), f32[8], u32[])`, and what a device keeps for itself."""
    if shape.startswith("(("):
        shape, operands = shape[_closing(shape[2:]) + 3 :], 0
    found = list(_ARRAY.finditer(shape))
    found = found[operands:] if len(found) > operands else found
    while len(found) > 1 and found[-1][1] in ("u32", "s32") and not found[-1][2]:
        found.pop()
    return ", ".join(array[0] for array in found)


def _closing(text: str) -> int:
    """Return where the parenthesis closes that was open before the text."""
    end = text.find(")")
    while end >= 0 and text.count("(", 0, end) >= text.count(")", 0, end + 1):
        end = text.find(")", end + 1)
    return end
