"""The number of a loop's turns, where its program says it."""

from mask_rcnn_jax.planning.hlo import Computation, Instruction, Program

# What is known of a value in a loop: ("is", number), ("item", i) of the loop's state, ("sum", of two), ("less", ...).
_Value = tuple | None
_SAME = {"copy", "bitcast", "reshape", "convert", "copy-start", "copy-done"}
_DEPTH = 6  # operations from a counter to what it is compared with


def annotated_turns(loop: Instruction) -> int | None:
    """Return the turns that the compiler has noted at a loop; it then runs without asking whether it is to go on."""
    found = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    return None if found is None else int(found)


def turns(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Return the turns of a loop that counts from one constant to another, None for any other."""
    noted = annotated_turns(loop)
    if noted is not None:
        return noted
    condition, body = (program.computations[loop.called(key)[0]] for key in ("condition", "body"))
    start = _items(program, computation, computation.operands(loop)[0])
    after = _items(program, body, body.root)

    def constant(value: _Value) -> int | None:
        """A constant, or what the loop is given and never changes."""
        if value and value[0] == "item" and value[1] < len(after) and after[value[1]] == value:
            value = start[value[1]] if value[1] < len(start) else None
        return value[1] if value and value[0] == "is" else None

    test = _value(program, condition, condition.root, None)
    if not test or test[0] != "less" or not test[1] or test[1][0] != "item":
        return None
    counter = test[1][1]
    if counter >= min(len(start), len(after)) or not (step := after[counter]) or step[0] != "sum":
        return None
    by = constant(step[2]) if step[1] == test[1] else constant(step[1]) if step[2] == test[1] else None
    begin, end = start[counter], constant(test[2])
    if by is None or by <= 0 or not begin or begin[0] != "is" or end is None:
        return None
    return max(0, -(-(end - begin[1]) // by))


def _items(program: Program, computation: Computation, state: Instruction) -> list[_Value]:
    if state.opcode != "tuple":
        return []
    return [_value(program, computation, operand, None) for operand in computation.operands(state)]


def _value(
    program: Program, inside: Computation, instruction: Instruction, given: list[_Value] | None, depth: int = _DEPTH
) -> _Value:
    """Return what is known of an instruction's result; `given` are the parameters of a fusion, None in a loop."""
    operands, opcode = inside.operands(instruction), instruction.opcode
    if opcode == "constant":
        return ("is", int(instruction.literal)) if instruction.literal.lstrip("-").isdigit() else None
    if opcode == "parameter":
        return given[int(instruction.literal)] if given else None
    if opcode == "get-tuple-element" and given is None and operands[0].opcode == "parameter":
        return ("item", int(instruction.attribute(r"index=(\d+)") or 0))
    if depth == 0:
        return None
    if opcode in _SAME:
        return _value(program, inside, operands[0], given, depth - 1)
    if opcode not in ("fusion", "add", "compare"):
        return None
    known = [_value(program, inside, operand, given, depth - 1) for operand in operands]
    if opcode == "fusion":
        fused = program.computations[instruction.called("calls")[0]]
        return _value(program, fused, fused.root, known, depth - 1)
    if opcode == "add":
        return ("sum", *known)
    direction = instruction.attribute(r"direction=(\w+)")
    if direction not in ("LT", "GT"):
        return None
    return ("less", *(known if direction == "LT" else reversed(known)))
