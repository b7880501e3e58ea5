"""Repeats a short training, a resumption, an evaluation and a prediction while another file operation fails each time.

`python -m tests.faults.fault_loop --folder FOLDER [--each K] [--seed S] [--scenarios NAME ...]`, as SQLite is tested:
the n-th operation (open, read, write, stat, rename, fsync, mkdir, unlink) on the data, the workdir or the output fails
once, with EIO, ENOSPC, EACCES or ESTALE in turn, for every n, or for K of each kind of operation on each kind of file.
The command must end within two minutes, with status 0 or 2, or 1 where it tells of images that failed, and without a
traceback; the same command must then come to what it comes to without a fault, bit for bit. Needs Linux and cc.
"""

import argparse
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.harness import ROOT, assert_same_end, finished_steps, write_settings
from tests.tiny import tiny_experiment

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE)
STEPS = 2
PROMPT = 120  # seconds; Orbax's threads wait ten minutes for one another


@dataclass(frozen=True)
class Scenario:
    """A command whose operations on files fail, and what it must have come to at its end."""

    name: str
    command: tuple[str, ...]
    prepare: Callable[[Path], None]  # takes away from a copy of everything what the command makes
    check: Callable[[Path, Path], None]  # of the folder that the command worked in, and of the one without a fault


@dataclass(frozen=True)
class Fault:
    """The n-th operation, as it failed."""

    number: int
    error: int
    operation: str = "no operation"

    def __str__(self) -> str:
        return f"operation {self.number}, {errno.errorcode[self.error]} in {self.operation}"


class Loop:
    """Works in `folder`: `whole` is what all commands come to without a fault, `subject` a copy in which one fails."""

    def __init__(self, folder: Path):
        self._folder, self._whole, self._subject = folder, folder / "whole", folder / "subject"
        self._library, self._counter, self._log = folder / "failing_calls.so", folder / "counter", folder / "operation"
        self._subject.mkdir(parents=True)
        source = Path(__file__).with_name("failing_calls.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self._library, source, "-ldl"], check=True)
        config = tiny_experiment(self._subject, steps=STEPS, checkpoint_every=1)
        images(self._subject / "images")
        self._scenarios = scenarios(write_settings(config, folder), self._subject)
        for scenario in self._scenarios:
            if scenario.name != "resume":
                status, output = self._run(scenario)
                assert status == 0, output
        self._subject.rename(self._whole)

    def faults(self, name: str, each: int, seed: int, matching: str) -> Iterator[tuple[Fault, str | None]]:
        """Each fault of a scenario in operations that match, and what went wrong after it."""
        (scenario,) = (scenario for scenario in self._scenarios if scenario.name == name)
        self._afresh(scenario)
        assert self._run(scenario)[0] == 0
        operations = self._log.read_text().splitlines()
        scenario.check(self._subject, self._whole)
        numbers = [n for n in chosen(operations, each, seed) if re.search(matching, operations[n - 1])]
        kinds = len({kind(operation) for operation in operations})
        print(f"{name}: {len(operations)} operations of {kinds} kinds, {len(numbers)} of them fail", flush=True)
        for turn, number in enumerate(numbers):
            fault = Fault(number, ERRORS[turn % len(ERRORS)])
            try:
                yield self._fault(scenario, fault)
            except subprocess.TimeoutExpired as error:
                yield fault, f"has not ended after {error.timeout:.0f} s: {excerpt((error.output or b'').decode())}"

    def _fault(self, scenario: Scenario, fault: Fault) -> tuple[Fault, str | None]:
        self._afresh(scenario)
        status, output = self._run(scenario, fault)
        if self._log.is_file():  # of threads the order is not always the same, or the operation may not have come
            fault = Fault(fault.number, fault.error, self._log.read_text().strip())
        left_out = status == 1 and "\nfailed: " in output  # predict goes on with the other images
        if status not in (0, 2) and not left_out:
            return fault, f"status {status}: {excerpt(output)}"
        if "Traceback" in output:
            return fault, f"a traceback: {excerpt(output)}"
        if status == 2 and len(re.findall("^error: ", output, re.MULTILINE)) != 1:
            return fault, f"not one sentence: {excerpt(output)}"
        if status != 0:
            status, output = self._run(scenario)
            if status != 0:
                return fault, f"does not go on: {excerpt(output)}"
        try:
            scenario.check(self._subject, self._whole)
        except (AssertionError, OSError) as error:
            return fault, f"another result: {error}"
        return fault, None

    def _afresh(self, scenario: Scenario) -> None:
        shutil.rmtree(self._subject, ignore_errors=True)
        shutil.copytree(self._whole, self._subject, symlinks=True)
        scenario.prepare(self._subject)

    def _run(self, scenario: Scenario, fault: Fault | None = None) -> tuple[int, str]:
        np.zeros(1, np.int64).tofile(self._counter)
        self._log.unlink(missing_ok=True)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "LD_PRELOAD": str(self._library),
            "FAULT_FOLDER": str(self._subject),
            "FAULT_COUNTER": str(self._counter),
            "FAULT_AT": str(fault.number if fault else 0),
            "FAULT_ERRNO": str(fault.error if fault else 0),
            "FAULT_LOG": str(self._log),
        }
        done = subprocess.run(
            [sys.executable, *scenario.command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROMPT,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")


def excerpt(output: str) -> str:
    """The beginning and the end of what a command printed."""
    return output if len(output) < 4000 else f"{output[:2000]}\n...\n{output[-2000:]}"


def chosen(operations: list[str], each: int, seed: int) -> list[int]:
    """The numbers of `each` operations of each kind, drawn with the seed, or of all where `each` is 0; in any order, so
    that a loop that is stopped has seen some of everything."""
    numbers: dict[str, list[int]] = {}
    for number, operation in enumerate(operations, 1):
        numbers.setdefault(kind(operation), []).append(number)
    random = np.random.default_rng(seed)
    drawn = (random.permutation(same)[: each or None].tolist() for same in numbers.values())
    return random.permutation([number for some in drawn for number in some]).tolist()


def kind(operation: str) -> str:
    """The operation and its file, whatever stands for a hash or a number in its name."""
    return re.sub(r"(?<=shapes-)\w{8}|[0-9a-f]{16,}|[0-9]+", "*", operation)


def scenarios(settings: Path, subject: Path) -> tuple[Scenario, ...]:
    run, out = subject / "run", subject / "out"
    train = ("train.py", "--config", str(settings), "--workdir", str(run))
    mask_rcnn = "from mask_rcnn_jax.cli.main import entry; entry()"
    predict = ("-c", mask_rcnn, "predict", str(subject / "images"), "--checkpoint", str(run))
    return (
        Scenario("start", train, _without("run", "shapes"), _same_run),
        Scenario("resume", train, _without("run/checkpoints/2", "run/result.json"), _same_run),
        Scenario(
            "evaluate", ("eval.py", "--workdir", str(run), "--pictures", "2"), _without("run/eval"), _same("run/eval")
        ),
        Scenario(
            "predict",
            (*predict, "--out", str(out), "--format", "csv", "coco", "--score-threshold", "0"),
            _without("out"),
            _same("out"),
        ),
    )


def images(folder: Path) -> None:
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (48 + 8 * number, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def _without(*names: str) -> Callable[[Path], None]:
    def prepare(subject: Path) -> None:
        for name in names:
            path = subject / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return prepare


def _same_run(subject: Path, whole: Path) -> None:
    assert finished_steps(subject / "run")[-1] == STEPS
    assert not (subject / "run" / "damaged").exists(), "a checkpoint was lost"
    assert_same_end(subject / "run", whole / "run", STEPS)


def _same(name: str) -> Callable[[Path, Path], None]:
    def check(subject: Path, whole: Path) -> None:
        found, expected = (
            {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file() and not path.name.startswith(".")
            }
            for folder in (subject / name, whole / name)
        )
        assert expected, "nothing was made"
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        different = [str(path) for path in found if found[path] != expected[path]]
        assert not different, different

    return check


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    parser.add_argument("--each", type=int, default=0, help="so many operations of each kind fail; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="decides which of them")
    parser.add_argument("--matching", default="", help="only operations that match this regular expression fail")
    parser.add_argument("--scenarios", nargs="+", default=["start", "resume", "evaluate", "predict"])
    arguments = parser.parse_args()
    loop, wrong = Loop(arguments.folder.resolve()), 0
    for name in arguments.scenarios:
        for fault, trouble in loop.faults(name, arguments.each, arguments.seed, arguments.matching):
            wrong += trouble is not None
            print(f"{name}, {fault}: {trouble or 'answered'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
