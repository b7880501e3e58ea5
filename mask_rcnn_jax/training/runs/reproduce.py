"""Runs a finished run again, and says whether it comes to the same bits."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from mask_rcnn_jax.data import fingerprint
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.disk.places import inside
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.python_files import classes_from_outside
from mask_rcnn_jax.training.datasets import load_datasets
from mask_rcnn_jax.training.loop import train
from mask_rcnn_jax.training.runs import provenance
from mask_rcnn_jax.training.runs.determinism import is_deterministic, use_deterministic_programs
from mask_rcnn_jax.training.runs.workdir import read_config

_MISSING = "none"

Line = dict[str, Any]  # of metrics.jsonl

# What a start and a result must hold: types that a value may have, or tables.
_TEXTS = None
_START = {
    "step": {int},
    "python": {str},
    "weights": {str},
    "code": {"hash": {str}, "revision": {str, type(None)}, "changes": {str, type(None)}},
    "devices": {"platform": {str}, "count": {int}},
    "packages": _TEXTS,
    "environment": _TEXTS,
    "data": _TEXTS,
}
_RESULT = {"step": {int}, "parameters": {str}, "buffers": {str}, "average": {str, type(None)}, "metrics": {str}}


@dataclass(frozen=True)
class Verdict:
    same: bool
    lines: list[str]  # what was compared, and with what result


def reproduce(workdir: Path, out: Path, say: Callable[[str], None]) -> Verdict:
    """Trains in the folder `out`, which must not be there, as the run in `workdir` was trained, and compares the two.

    `say` is told first how code, packages, devices and data differ from those of the run. Raises `UserError` where
    there is no finished run, where it is not recorded, or where there are not as many devices. A run that asked for
    deterministic programs is repeated with them.
    """
    config, starts = read_config(workdir), provenance.read_starts(workdir)
    if config is None:
        raise UserError(f"{workdir} holds no run")
    _check_records(workdir, starts)
    if os.path.lexists(out) and (inside(out) or not is_folder(out)):
        raise UserError(f"--out {out} is there already; name a folder that is not, or remove it")
    if any(is_deterministic(start["environment"].get("XLA_FLAGS", "")) for start in starts):
        use_deterministic_programs()  # before the devices are counted
    _check_devices(workdir, starts)
    data = {split: fingerprint(dataset) for split, dataset in load_datasets(config).items()}
    code, _ = provenance.describe_code()
    now = provenance.describe_machine() | {"code": code, "data": data, "extensions": classes_from_outside(config)}
    lines = [line for start in starts for line in differences(start, now)]
    for line in dict.fromkeys(lines):
        say(f"differs: {line}")
    if not lines:
        say("code, packages, devices and data are those of the run")
    if any(start["code"]["hash"] != code["hash"] for start in starts):
        say(how_to_get_code(workdir, starts[-1]["code"]))
    train(config, out)
    return compare(workdir, out)


def compare(workdir: Path, out: Path) -> Verdict:
    """Compares what two finished runs came to. Raises `UserError` where one has not finished or cannot be read.

    A run that was stopped, or resumed with another `log_every` or `checkpoint_every`, has reported other steps: those
    reports, which are means over their steps, are left out.
    """
    expected, found = provenance.read_result(workdir), provenance.read_result(out)
    then, now = provenance.repeatable_metrics(workdir), provenance.repeatable_metrics(out)
    different = {name for name in expected if expected[name] != found[name]}
    told = {name: _compared(name, expected[name], found[name]) for name in expected if name != "step"}
    # Lines that are not those that were hashed show nothing.
    if different == {"metrics"} and provenance.hash_metrics(then) == expected["metrics"] and _agree(then, now):
        told["metrics"] = "metrics: the same wherever both report of the same steps; the first run reported some others"
        different = set()
    lines = list(told.values())
    if different:
        lines += _explained(workdir, out, then, now)
    return Verdict(not different, [line for line in lines if line])


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each thing that is not as it was at a start of the run."""
    lines = []
    if then["code"]["hash"] != now["code"]["hash"]:
        lines.append(f"code: {_revision(then['code'])} then, {_revision(now['code'])} now")
    if then["python"] != now["python"]:
        lines.append(f"Python: {then['python']} then, {now['python']} now")
    for what in ("packages", "devices", "environment", "extensions"):
        of_then = then.get(what, {})  # older runs had no extensions
        for name in sorted(of_then.keys() | now[what].keys()):
            before, after = of_then.get(name, _MISSING), now[what].get(name, _MISSING)
            if before != after:
                lines.append(f"{what}, {name}: {before} then, {after} now")
    splits = [split for split in then["data"] if then["data"][split] != now["data"].get(split)]
    return lines + [f"data: the {split} split has other images or annotations than then" for split in splits]


def how_to_get_code(workdir: Path, code: dict[str, Any]) -> str:
    """The commands that bring the run's own code back."""
    if code["revision"] is None:
        return "the run's code was not in a git checkout; install the version of mask-rcnn-jax that it had"
    apply = f" && git -C DIR apply {workdir.resolve() / code['changes']}" if code["changes"] else ""
    lost = " (its uncommitted changes were too large to be kept)" if code.get("changes_left_out") else ""
    return f"the run's own code: git worktree add DIR {code['revision']}{apply}{lost}"


def _check_records(workdir: Path, starts: list[dict[str, Any]]) -> None:
    """Raises `UserError` where something could not be compared, before anything is trained."""
    provenance.repeatable_metrics(workdir)
    try:
        _check(provenance.read_result(workdir), _RESULT)
        for start in starts:
            _check(start, _START)
            _check(start.get("extensions", {}), None, "extensions")
    except ValueError as error:
        raise UserError(f"the record of {workdir} cannot be used: {error}; train the run again") from None


def _check(value: Any, form: set[type] | dict[str, Any] | None, name: str = "it") -> None:
    """Raise ValueError naming what has not the `form`; None is that of a table of texts."""
    if isinstance(form, set):
        if type(value) not in form:
            raise ValueError(f"{name} is {'missing' if value is ... else 'of another type'}")
    elif not isinstance(value, dict):
        raise ValueError(f"{name} is no table")
    elif form is None:
        if not all(isinstance(text, str) for text in value.values()):
            raise ValueError(f"{name} is no table of texts")
    else:
        for key, part in form.items():
            _check(value.get(key, ...), part, key)


def _check_devices(workdir: Path, starts: list[dict[str, Any]]) -> None:
    """Raises `UserError` where the numbers of devices differ: no settings would then give the same bits."""
    counts = list(dict.fromkeys(start["devices"]["count"] for start in starts))
    if len(counts) > 1:
        numbers = " and then ".join(map(str, counts))
        raise UserError(f"{workdir} was trained on {numbers} devices, which one run cannot repeat")
    kind, present = starts[0]["devices"]["platform"], len(jax.devices())
    if counts[0] == present:
        return
    how = {
        "cpu": f"set JAX_NUM_CPU_DEVICES={counts[0]}",
        "gpu": f"name {counts[0]} of them in CUDA_VISIBLE_DEVICES" if present > counts[0] else "use a larger machine",
    }.get(kind, "use a machine with as many")
    raise UserError(f"{workdir} was trained on {counts[0]} devices ({kind}), and here are {present}; {how}")


def _revision(code: dict[str, Any]) -> str:
    changed = code["changes"] or code.get("changes_left_out")
    name = code["revision"][:12] if code["revision"] else "no git revision"
    return f"{name}{' with changes' if changed else ''} (files {code['hash'][:12]})"


def _compared(name: str, expected: str | None, found: str | None) -> str:
    if expected is None and found is None:
        return ""
    if expected == found:
        return f"{name}: the same bits (sha256 {str(found)[:16]})"
    return f"{name}: DIFFERENT (sha256 {str(expected)[:16]} then, {str(found)[:16]} now)"


def _explained(workdir: Path, out: Path, then: list[Line], now: list[Line]) -> list[str]:
    """Say where the two runs diverge: their first weights, or the first number that they reported differently."""
    if provenance.read_starts(out)[0]["weights"] != provenance.read_starts(workdir)[0]["weights"]:
        return ["the weights that the runs started from differ already: see seed, pretrained, and package versions"]
    reports = _by_steps(now)
    for steps, lines in _by_steps(then).items():
        for before, after in zip(lines, reports.get(steps, ()), strict=False):
            for name in before:
                if before[name] != after.get(name):
                    return [f"first difference: {name} at step {steps[1]}: {before[name]} then, {after.get(name)} now"]
    if len(then) != len(now):
        return [f"{len(then)} lines of metrics then, {len(now)} now"]
    return ["every number that was reported is the same"]


def _agree(then: list[Line], now: list[Line]) -> bool:
    """Tell whether all evaluations are the same, and all reports of the same steps."""
    first, second = _by_steps(then), _by_steps(now)
    evaluated = [{steps for steps in reports if steps[0] == steps[1]} for reports in (first, second)]
    return evaluated[0] == evaluated[1] and all(first[steps] == second[steps] for steps in first.keys() & second.keys())


def _by_steps(lines: list[Line]) -> dict[tuple[int, int], list[Line]]:
    """The lines by the steps that they are of: (a, b) for a report of steps a + 1 to b, (b, b) for an evaluation."""
    found: dict[tuple[int, int], list[Line]] = {}
    reported = 0
    for line in lines:
        step = line["step"]
        found.setdefault((reported if "loss" in line else step, step), []).append(line)
        reported = step if "loss" in line else reported
    return found
