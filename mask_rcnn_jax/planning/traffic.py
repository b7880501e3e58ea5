"""Bytes that a kernel of a compiled program reads from the device's memory and writes there.

A kernel is an instruction that runs by itself: a fusion, or any other that does something. An operand counts once, and
only the share of it that the kernel needs: of a slice or a gather what it takes. What is computed inside of a fusion
never reaches the memory. An update of a slice is in place.
"""

from mask_rcnn_jax.planning.hlo import Array, Computation, Instruction, Program

# Names for what another instruction made, and instructions whose computations are accounted for by themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier"),
    *("partition-id", "replica-id", "domain", "while", "conditional", "call", "async-start", "get-dimension-size"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}
_NAMES = {"bitcast", "reshape", "copy", "transpose", "convert"}  # between an update and what is updated
_PLACES = {"ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding"}  # custom calls


def is_free(instruction: Instruction) -> bool:
    """Tell whether an instruction moves nothing itself."""
    opcode = instruction.opcode
    return opcode in _FREE or opcode.endswith(("-done", "-update")) or _target(instruction) in _PLACES


def traffic(program: Program, computation: Computation, kernel: Instruction) -> float:
    """Compute the bytes that a kernel reads and writes."""
    if kernel.opcode == "copy-start":  # its result is (copy, original, ...), of which one may lie on the chip
        return float(sum(array.size for array in kernel.arrays[:2]))
    operands = computation.operands(kernel)
    needed: dict[str, float] = {}
    for operand, share in zip(operands, _shares(program, computation, kernel, 1.0), strict=True):
        needed[operand.name] = min(1.0, needed.get(operand.name, 0.0) + share)
    read = sum(computation.instructions[name].size * share for name, share in needed.items())
    return read + _written(program, computation, kernel)


def _shares(program: Program, computation: Computation, instruction: Instruction, share: float) -> list[float]:
    """Compute the share of each operand that is read where a share of the result is needed."""
    operands = computation.operands(instruction)
    if instruction.opcode == "fusion":
        inside = program.computations[instruction.called("calls")[0]]
        read = _read(program, inside)
        return [share * read.get(number, 0.0) for number in range(len(operands))]
    return [_share(instruction, number, operand, share) for number, operand in enumerate(operands)]


def _share(instruction: Instruction, number: int, operand: Instruction, share: float) -> float:
    growth = instruction.elements / max(1, operand.elements)
    if instruction.opcode in _SLICES:
        return min(1.0, share * growth) if number == 0 else 1.0
    if instruction.opcode == "broadcast":
        return min(1.0, share * growth)
    if instruction.opcode == "dynamic-update-slice":
        return 0.0 if number == 0 else share
    if instruction.opcode == "scatter":
        return 0.0 if number < _inputs(instruction) else 1.0
    return 1.0 if instruction.opcode == "sort" else share


def _read(program: Program, inside: Computation) -> dict[int, float]:
    """Compute the share of each parameter that a fusion reads, going from its result to what it is made of."""
    needed = {inside.root.name: 1.0}
    in_place = {update.name for update in _updates(inside) if update is not None}
    for instruction in reversed(list(inside)):
        share = needed.get(instruction.name, 0.0)
        if share == 0:
            continue
        shares = _shares(program, inside, instruction, share)
        if instruction.opcode in ("dynamic-update-slice", "scatter") and instruction.name not in in_place:
            shares[0 : _inputs(instruction)] = [share] * _inputs(instruction)
        for operand, part in zip(inside.operands(instruction), shares, strict=True):
            needed[operand.name] = min(1.0, needed.get(operand.name, 0.0) + part)
    return {number: needed.get(each.name, 0.0) for number, each in inside.parameters.items()}


def _updates(inside: Computation) -> list[Instruction | None]:
    """Return, for each array of a fusion's result, the instruction that updates a parameter in place, if one does."""
    results = inside.operands(inside.root) if inside.root.opcode == "tuple" else [inside.root]
    updates: list[Instruction | None] = []
    for result in results:
        update = _origin(inside, result)
        is_update = update.opcode in ("dynamic-update-slice", "scatter")
        whole = is_update and _is_there(_origin(inside, inside.operands(update)[0]))
        updates += [update if whole else None] * len(result.arrays)
    return updates


def _origin(inside: Computation, instruction: Instruction) -> Instruction:
    """Follow an array through other names of it."""
    while instruction.opcode in _NAMES:
        (instruction,) = inside.operands(instruction)
    return instruction


def _is_there(array: Instruction) -> bool:
    """Tell whether an array lies in memory before a fusion begins, be it that nothing was written there."""
    return array.opcode == "parameter" or _target(array) == "AllocateBuffer"


def _target(instruction: Instruction) -> str:
    return instruction.attribute(r'custom_call_target="([^"]*)"') or ""


def _inputs(instruction: Instruction) -> int:
    """Return the number of the arrays that an update changes; a scatter's indices and updates come after them."""
    return len(instruction.arrays) if instruction.opcode == "scatter" else 1


def _written(program: Program, computation: Computation, kernel: Instruction) -> float:
    """Bytes of the result that are written; a scatter reads what it adds to."""
    inside, updates = computation, [kernel] * len(kernel.arrays)
    if kernel.opcode == "fusion":
        inside = program.computations[kernel.called("calls")[0]]
        updates = _updates(inside)
    total = 0.0
    for number, array in enumerate(_results(kernel)):
        update = updates[number] if number < len(updates) else None
        total += array.size * (1.0 if update is None else _changed(inside, update))
    return total


def _results(kernel: Instruction) -> tuple[Array, ...]:
    """The arrays of a kernel's result, without the space that NVIDIA's libraries work in."""
    scratch = _target(kernel).startswith("__cu") and len(kernel.arrays) > 1 and kernel.arrays[-1].dtype in ("s8", "u8")
    return kernel.arrays[:-1] if scratch else kernel.arrays


def _changed(inside: Computation, update: Instruction) -> float:
    """Compute the share of an array that an update changes, twice for one that adds; 1 for other instructions."""
    operands = inside.operands(update)
    if update.opcode == "dynamic-update-slice":
        return operands[1].elements / max(1, operands[0].elements)
    if update.opcode == "scatter":
        return min(2.0, 2 * operands[-1].elements / max(1, operands[0].elements))
    return 1.0
