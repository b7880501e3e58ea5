"""The account of a compiled program: what its kernels move and multiply, its loops, and what crosses devices.

`account(compiled.as_text())` goes through the program as a device does: bodies of loops as often as they turn, of a
condition the branch that moves most. It is an estimate: a sort counts as one pass and the scratch space of libraries as
nothing, and no cache keeps anything from one kernel to the next.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mask_rcnn_jax.planning import traffic
from mask_rcnn_jax.planning.hlo import Computation, Instruction, Program, parse
from mask_rcnn_jax.planning.loops import annotated_turns, turns
from mask_rcnn_jax.planning.products import Product, products
from mask_rcnn_jax.planning.stages import Stage, stage_of

ASSUMED_TURNS = 3  # of a loop whose program does not say how often it turns
_RINGS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
_COLLECTIVES = (*_RINGS, "collective-permute", "collective-broadcast")
# Of each byte of the larger of operand and result: the bytes that leave a device of a ring of n.
_SENT = defaultdict(lambda: 1.0, {"all-reduce": 2.0})


@dataclass(frozen=True)
class Kernel:
    """An instruction that runs by itself, `times` a step."""

    name: str
    opcode: str
    stage: Stage
    times: int
    traffic: float  # bytes that it reads and writes, once
    products: tuple[Product, ...]


@dataclass(frozen=True)
class Loop:
    """A loop. `turns` is None where the program does not say how often it turns."""

    stage: Stage
    times: int  # that it is begun in a step
    turns: int | None
    annotated: bool  # so that a GPU runs it without asking the host


@dataclass(frozen=True)
class Collective:
    """An operation in which devices exchange arrays."""

    kind: str
    stage: Stage
    times: int
    payload: int  # bytes of the larger of operand and result, on a device
    devices: int  # that exchange them with one another

    @property
    def sent(self) -> float:
        """The bytes that leave a device in a ring."""
        if self.kind not in _RINGS:
            return float(self.payload)
        return _SENT[self.kind] * self.payload * (self.devices - 1) / self.devices


@dataclass
class Account:
    """All that a program does in one call, in the order in which it does it."""

    kernels: list[Kernel] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    conditions: list[tuple[Stage, int]] = field(default_factory=list)  # with how often they are asked
    collectives: list[Collective] = field(default_factory=list)

    @property
    def traffic(self) -> float:
        """The bytes that are read from the device's memory and written there."""
        return sum(kernel.traffic * kernel.times for kernel in self.kernels)

    @property
    def operations(self) -> float:
        """The multiplications and additions of convolutions and matrix products."""
        return sum(each.operations * kernel.times for kernel in self.kernels for each in kernel.products)

    @property
    def unknown_loops(self) -> list[Loop]:
        """The loops of unknown length."""
        return [loop for loop in self.loops if loop.turns is None]

    @property
    def host_waits(self) -> int:
        """Times that a GPU asks the host: after each turn of a loop that is not annotated, and at each condition."""
        of_loops = sum(
            loop.times * (1 + (ASSUMED_TURNS if loop.turns is None else loop.turns))
            for loop in self.loops
            if not loop.annotated
        )
        return of_loops + sum(times for _, times in self.conditions)

    def by_stage(self) -> Mapping[Stage, "Account"]:
        """Return the account of each stage, the one with the most traffic first."""
        parts: dict[Stage, Account] = defaultdict(Account)
        for kernel in self.kernels:
            parts[kernel.stage].kernels.append(kernel)
        for loop in self.loops:
            parts[loop.stage].loops.append(loop)
        for condition in self.conditions:
            parts[condition[0]].conditions.append(condition)
        for collective in self.collectives:
            parts[collective.stage].collectives.append(collective)
        return dict(sorted(parts.items(), key=lambda item: -item[1].traffic))

    def count(self, opcodes: Iterable[str]) -> int:
        """Count the kernels whose main operation is one of these, each once."""
        return sum(kernel.opcode in opcodes for kernel in self.kernels)

    def add(self, other: "Account") -> None:
        """Append all that another program does."""
        self.kernels += other.kernels
        self.loops += other.loops
        self.conditions += other.conditions
        self.collectives += other.collectives


def account(text: str, devices: int = 1) -> Account:
    """Account for a compiled program, given as HLO, that runs on so many devices.

    Raises ValueError where the text holds no compiled program.
    """
    program = parse(text)
    return _walked(_Walk(program, devices), program.entry, 1, Stage(""))


@dataclass(frozen=True)
class _Walk:
    program: Program
    devices: int


def _walked(walk: _Walk, computation: Computation, times: int, around: Stage) -> Account:
    """Account for a computation that runs `times` a step in the stage `around`."""
    total = Account()
    stages: dict[str, Stage] = {}
    for each in computation:
        stage = stages[each.name] = _stage(walk.program, each, [stages[name] for name in each.operands], around)
        if each.opcode == "while":
            total.add(_loop(walk, computation, each, times, stage))
        elif each.opcode == "conditional":
            total.add(_condition(walk, each, times, stage))
        elif each.opcode in ("call", "async-start"):
            for name in each.called("to_apply") + each.called("calls"):
                total.add(_walked(walk, walk.program.computations[name], times, stage))
        elif not traffic.is_free(each):
            moved = traffic.traffic(walk.program, computation, each)
            made = tuple(products(walk.program, computation, each))
            total.kernels.append(Kernel(each.name, _main_opcode(walk.program, each), stage, times, moved, made))
            if each.opcode in _COLLECTIVES:
                total.collectives.append(_collective(walk, computation, each, times, stage))
    return total


def _loop(walk: _Walk, computation: Computation, loop: Instruction, times: int, stage: Stage) -> Account:
    known = turns(walk.program, computation, loop)
    count = ASSUMED_TURNS if known is None else known
    total = Account(loops=[Loop(stage, times, known, annotated_turns(loop) is not None)])
    for key, often in (("condition", count + 1), ("body", count)):
        (name,) = loop.called(key)
        total.add(_walked(walk, walk.program.computations[name], times * often, stage))
    return total


def _condition(walk: _Walk, condition: Instruction, times: int, stage: Stage) -> Account:
    names = condition.called("branch_computations")
    names = names or condition.called("true_computation") + condition.called("false_computation")
    branches = [_walked(walk, walk.program.computations[name], times, stage) for name in names]
    total = Account(conditions=[(stage, times)])
    total.add(max(branches, key=lambda branch: branch.traffic))
    return total


def _stage(program: Program, instruction: Instruction, of_operands: list[Stage], around: Stage) -> Stage:
    """The stage of an instruction; of one without a name that of what is inside, before, or around it.

    What takes an array of the backward pass belongs to it.
    """
    stage = stage_of(instruction.op_name)
    if stage.name or instruction.op_name.count("/") > 1:
        return stage if stage.name else Stage(around.name, stage.backward)
    inside = instruction.called("calls") if instruction.opcode == "fusion" else []
    named = [stage_of(each.op_name) for name in inside for each in program.computations[name]]
    before = sorted(of_operands, key=lambda each: not each.backward)
    return next((each for each in (*reversed(named), *before) if each.name), around)


def _main_opcode(program: Program, instruction: Instruction) -> str:
    """The opcode, of a fusion that of its result; a custom call's target."""
    while instruction.opcode == "fusion":
        instruction = program.computations[instruction.called("calls")[0]].root
    return instruction.attribute(r'custom_call_target="([^"]*)"') or instruction.opcode


def _collective(walk: _Walk, computation: Computation, each: Instruction, times: int, stage: Stage) -> Collective:
    operands = [array for operand in computation.operands(each) for array in operand.arrays]
    payload = max(sum(array.data for array in operands), sum(array.data for array in each.arrays))
    return Collective(each.opcode, stage, times, payload, _group(each, walk.devices))


def _group(collective: Instruction, devices: int) -> int:
    """Return how many exchange with one another: two in {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'b'}."""
    if found := collective.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return found.count(",") + 1
    if found := collective.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(found)
    if mesh := collective.attribute(r"replica_groups=(mesh\[[^\]]*\][^{]*\{[^}]*\})"):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        return math.prod(int(sides[name]) for name in re.findall(r"'(\w+)'", mesh.partition("]")[2]))
    return devices
