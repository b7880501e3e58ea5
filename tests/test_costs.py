"""The table of what tests cost: what jax compiles is seen, workers' records arrive, and the budget fails a run."""

from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tests.compilations import Recorder
from tests.costs import BACKWARD_PRODUCTS, Costs, Program

pytest_plugins = ["pytester"]

# Tests of their own, without jax: two files that have a program each and share one, and a worker that crashes once.
CONFTEST = """
    from tests.costs import Costs

    compiled = []

    def drain():
        programs, compiled[:] = list(compiled), []
        return programs

    def pytest_configure(config):
        config.addinivalue_line("markers", "slow: slow")
        config.pluginmanager.register(Costs(drain, budget={budget}))
"""
TOYS = """
    import os
    from pathlib import Path
    import pytest
    from conftest import compiled
    from tests.costs import Program

    def test_trains():
        compiled.append(Program("step", 1.0, 2.0, 30.0, key="{name}", operations=500, backward_products=88))

    def test_shares():
        compiled.append(Program("step", 1.0, 2.0, 0.5, key="shared", cached=True, operations=500, backward_products=88))

    @pytest.mark.slow
    def test_takes_long():
        compiled.append(Program("step", 1.0, 2.0, 30.0, key="slow {name}", operations=500, backward_products=88))
"""
CRASH = """
    def test_crashes():
        compiled.append(Program("lost"))
        if not Path("crashed").exists():
            Path("crashed").touch()
            os._exit(3)
"""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    recorder.start()
    yield recorder
    recorder.stop()


def network(weights: jax.Array, x: jax.Array) -> jax.Array:
    for weight in weights:
        x = jnp.tanh(x @ weight)
    return x.sum()


def test_what_jax_compiles_is_recorded(recorder):
    weights, x = jnp.ones((3, 2, 2)), jnp.ones((3, 2))
    recorder.drain()
    for function in (network, jax.grad(network), jax.grad(network)):
        jax.jit(lambda *arguments, function=function: function(*arguments))(weights, x).block_until_ready()
    forward, backward, again = (program for program in recorder.drain() if program.key)
    for program in (forward, backward, again):
        assert program.name == "<lambda>"
        assert min(program.traced, program.lowered, program.compiled) > 0
    assert forward.backward_products == 0
    assert backward.backward_products == 5  # two by layer, and none of the input
    assert backward.operations > forward.operations > 3
    assert backward.key == again.key != forward.key


def test_what_is_only_lowered_is_recorded(recorder):
    jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2,), jnp.float32))
    (program,) = recorder.drain()
    assert program.traced > 0
    assert program.lowered > 0
    assert (program.compiled, program.key) == (0, "")


def test_a_program_from_the_cache_is_one_too(recorder):
    recorder._on_event("/jax/compilation_cache/cache_hits")
    recorder._on_duration("/jax/core/compile/backend_compile_duration", 0.25, fun_name="jit(f)")
    (program,) = recorder.drain()
    assert program == Program("f", compiled=0.25, cached=True)


def report(test: str, *programs: Program, slow: bool = False) -> SimpleNamespace:
    keywords = {"slow": 1} if slow else {}
    return SimpleNamespace(nodeid=test, duration=1.5, keywords=keywords, programs=[tuple(p) for p in programs])


def test_equal_programs_are_one_and_the_dearest_come_first():
    costs = Costs(list)
    small = Program("init", 0.5, 0.5, 1.5, key="i", operations=90)
    step = Program("step", 10.0, 1.0, 50.0, key="s", operations=900, backward_products=BACKWARD_PRODUCTS)
    costs.pytest_runtest_logreport(report("tests/a.py::test_x", small, step))
    costs.pytest_runtest_logreport(report("tests/a.py::test_y", step._replace(compiled=0.5, cached=True)))
    costs.pytest_runtest_logreport(report("tests/b.py::test_z[a::b]", Program("shape", 3.0)))
    text = "\n".join(" ".join(line.split()) for line in costs.lines())
    assert "seconds file\n3.0 tests/a.py\n1.5 tests/b.py\n" in text
    assert "the first test that has it\n20.0 2.0 50.5 2 1 900 step tests/a.py::test_x\n" in text
    assert "3.0 0.0 0.0 0 0 0 shape tests/b.py::test_z[a::b]\n0.5 0.5 1.5 1 0 90 init tests/a.py::test_x\n" in text
    assert text.endswith("23.5 2.5 52.0 3 1 990")


def test_workers_send_what_they_compile_and_a_crash_costs_its_own_test_only(pytester, pytestconfig, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    pytester.makeconftest(CONFTEST.format(budget=9))
    pytester.makepyfile(test_one=TOYS.format(name="one") + CRASH, test_two=TOYS.format(name="two"))
    done = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines([" *2.0 * 4.0 * 1.0 * 2 * 2 *500  step  test_*.py::test_shares"])
    done.stdout.fnmatch_lines(["3 programs of a forward and a backward pass; the budget is 9"])
    assert done.parseoutcomes()["failed"] == 1


@pytest.mark.parametrize(("budget", "status"), [(3, 0), (2, 1)])
def test_more_programs_than_the_budget_fail_the_run(pytester, budget, status):
    """Slow tests' programs count for nothing."""
    pytester.makeconftest(CONFTEST.format(budget=budget))
    pytester.makepyfile(test_one=TOYS.format(name="one"), test_two=TOYS.format(name="two"))
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=6)
    assert done.ret == status
    done.stdout.fnmatch_lines([f"3 programs of a forward and a backward pass; the budget is {budget}*"])


def test_a_worker_fails_by_no_budget():
    """It has seen a part of the run; what is counted there is sent."""
    costs = Costs(list, budget=0)
    costs.pytest_runtest_logreport(report("tests/a.py::test_x", Program("step", key="s", backward_products=99)))
    for config, status in ((SimpleNamespace(workerinput={}), 0), (SimpleNamespace(), 1)):
        session = SimpleNamespace(config=config, exitstatus=pytest.ExitCode.OK)
        costs.pytest_sessionfinish(session)
        assert session.exitstatus == status
