"""Prints what a run of the tests costs, by file, test and compiled program, and fails it where it compiles too much.

The programs of commands that tests start are not seen; their time is part of the test's.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

# Distinct programs of a forward and a backward pass that the tests may compile; those of slow tests do not count.
BUDGET = 15
# A network's backward pass has at least as many convolutions and matrix products; a layer's and a loss's have fewer.
BACKWARD_PRODUCTS = 20
# Rows of each kind, and the seconds below which none is worth a row.
_ROWS, _SECONDS = 20, 1.0


class Program(NamedTuple):
    """A function that became a program, or was traced or lowered only; in seconds. A tuple, as workers may send it."""

    name: str
    traced: float = 0.0
    lowered: float = 0.0
    compiled: float = 0.0  # or read from the persistent cache
    key: str = ""  # equal for equal programs; empty if none was compiled
    cached: bool = False
    operations: int = 0
    backward_products: int = 0  # convolutions and matrix products of a backward pass


@dataclass
class _Cost:
    """All compilations of one program, or of one function as far as nothing was compiled."""

    program: Program
    first_test: str
    traced: float = 0.0
    lowered: float = 0.0
    compiled: float = 0.0
    loaded: int = 0
    cached: int = 0
    quick: bool = False  # a test that is not slow has it

    def add(self, program: Program, quick: bool) -> None:
        self.traced += program.traced
        self.lowered += program.lowered
        self.compiled += program.compiled
        self.loaded += bool(program.key)
        self.cached += program.cached
        self.quick |= quick

    @property
    def seconds(self) -> float:
        return self.traced + self.lowered + self.compiled

    @property
    def operations(self) -> int:
        return self.program.operations

    @property
    def has_both_passes(self) -> bool:
        return self.program.backward_products >= BACKWARD_PRODUCTS

    def __str__(self) -> str:
        return f"{_sums([self])}  {self.program.name}  {self.first_test}"


class Costs:
    """The plugin. Under pytest-xdist, workers send what they compiled with the report of each test."""

    def __init__(self, drain: Callable[[], list[Program]], budget: int = BUDGET) -> None:
        self._drain = drain
        self._budget = budget
        self._tests: dict[str, float] = defaultdict(float)
        self._programs: dict[tuple[str, str], _Cost] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Lay what was compiled since the last report into this one."""
        report = yield
        report.programs = [tuple(program) for program in self._drain()]
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up a report; that of a worker's crash has no programs."""
        self._tests[report.nodeid] += report.duration
        for program in map(Program._make, getattr(report, "programs", ())):
            cost = self._programs.setdefault((program.name, program.key), _Cost(program, report.nodeid))
            cost.add(program, quick="slow" not in report.keywords)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that is over the budget; a worker has seen a part of it only."""
        worker = hasattr(session.config, "workerinput")
        if self._counted() > self._budget and session.exitstatus == pytest.ExitCode.OK and not worker:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        terminalreporter.section("what the tests cost")
        for line in self.lines():
            terminalreporter.line(line)
        over = self._counted() > self._budget
        say = f"{self._counted()} programs of a forward and a backward pass; the budget is {self._budget}"
        terminalreporter.line(f"{say}: exceeded, see tests/costs.py" if over else say, red=over, bold=over)

    def lines(self) -> list[str]:
        """Return the table's lines: files, tests and programs, dearest first."""
        files: dict[str, float] = defaultdict(float)
        for test, seconds in self._tests.items():
            files[test.partition("::")[0]] += seconds
        costs = sorted(self._programs.values(), key=lambda cost: -cost.seconds)
        both = [cost for cost in costs if cost.has_both_passes]
        rest = [cost for cost in costs if not cost.has_both_passes and cost.seconds >= _SECONDS][:_ROWS]
        columns = "  traced  lowered compiled  loaded  cached operations"
        sections = {
            " seconds  file": _dearest(files),
            " seconds  test": _dearest(self._tests),
            f"{columns}  program of a forward and a backward pass, and the first test that has it": [
                str(cost) for cost in both
            ],
            f"{columns}  other program, and the first test that has it": [str(cost) for cost in rest],
            f"{columns}  of all programs": [_sums(costs)],
        }
        return [line for heading, rows in sections.items() if rows for line in (heading, *rows)]

    def _counted(self) -> int:
        return sum(cost.has_both_passes and cost.quick for cost in self._programs.values())


def _dearest(seconds: dict[str, float]) -> list[str]:
    dearest = sorted(seconds.items(), key=lambda item: -item[1])[:_ROWS]
    return [f"{value:8.1f}  {name}" for name, value in dearest if value >= _SECONDS]


def _sums(costs: Sequence[_Cost]) -> str:
    names = ("traced", "lowered", "compiled", "loaded", "cached", "operations")
    traced, lowered, compiled, *counts = (sum(getattr(cost, name) for cost in costs) for name in names)
    loaded, cached, operations = counts
    return f"{traced:8.1f} {lowered:8.1f} {compiled:8.1f} {loaded:7} {cached:7} {operations:10}"
