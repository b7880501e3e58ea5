"""Everything needed to repeat a run, and its result: `WORKDIR/starts.jsonl` and `WORKDIR/result.json`.

Each start of a run adds a line with the command, the code, packages, devices, settings of jax, and the fingerprints of
the data and of the weights it started from. Changes of the code that git has not got lie beside it, `code-HASH.diff`.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import CocoDataset, fingerprint
from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.disk.places import latest_step
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.step import TrainState

STARTS_FILE, RESULT_FILE, METRICS_FILE = "starts.jsonl", "result.json", "metrics.jsonl"

_PACKAGE = Path(__file__).parents[1]
_MOST_CHANGES = 1 << 20  # bytes; with more it is no change of the code, but something else that lies in its folder
# What `git apply` takes, whatever a user has set.
_PATCH = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
# What metrics.jsonl has of the run's course, by the first part of the name; the rest, such as speeds, is the machine's.
_REPEATABLE = {"loss", "learning_rate", "gradient_norm", "bbox", "segm", "keypoints", "average"}

Data = Mapping[str, Mapping[str, str]]  # "data", the fingerprint of each split, and "data_size"


def check_data(workdir: Path, datasets: Mapping[str, CocoDataset]) -> Data:
    """Returns what is recorded of the data, which must be those that the run in `workdir` has been trained on.

    Raises `UserError` where they are others.
    """
    now = {
        "data": {split: fingerprint(dataset) for split, dataset in datasets.items()},
        "data_size": {split: _size(dataset) for split, dataset in datasets.items()},
    }
    then = _data_of(workdir, latest_step(workdir))
    for split, dataset in datasets.items():
        size, size_then = now["data_size"][split], then["data_size"].get(split)
        # Without a size, a mixture's names were taken below a folder of all its sources.
        comparable = split in then["data"] and (size_then is not None or not dataset.weights)
        if not comparable or then["data"][split] == now["data"][split]:
            continue
        how = f"{size}, but other names, sizes or annotations"
        if size_then is not None and size_then != size:
            how = f"{size_then} then, {size} now"
        raise UserError(
            f"the {split} split is not the one that {workdir} was trained with ({how}); bring that back, or train in"
            f" another --workdir with pretrained={workdir}"
        )
    return now


def _data_of(workdir: Path, step: int | None) -> Data:
    """Return what is recorded of the data with which the run came to `step`."""
    try:
        starts = [json.loads(line) for line in (workdir / STARTS_FILE).read_text().splitlines()]
        # Of several starts before this step the last one led to it.
        then = [start for start in starts if start["step"] < (step or 0)][-1]
        return {"data": dict(then["data"]), "data_size": dict(then.get("data_size", {}))}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {"data": {}, "data_size": {}}  # a record that is missing or cannot be read does not end a run


def _size(dataset: CocoDataset) -> str:
    return f"{len(dataset.records)} images with {sum(len(record.boxes) for record in dataset.records)} instances"


def record_start(workdir: Path, state: TrainState, data: Data, extensions: Mapping[str, str]) -> list[str]:
    """Adds this start of the run in `workdir` on `data`, as `check_data` tells it, to its record.

    `extensions` are the classes of its configuration from outside the package, as `classes_from_outside` tells them.
    Returns what is to be said of it. Of several processes the first one does it.
    """
    told = []
    code, changes = describe_code()
    if len(changes) > _MOST_CHANGES:
        code["changes_left_out"] = True
        told.append(f"uncommitted changes of the code are not kept: they exceed {_MOST_CHANGES >> 20} MiB")
    elif changes:
        code["changes"] = f"code-{hashlib.sha256(changes).hexdigest()[:12]}.diff"
        _write(workdir / code["changes"], changes)
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": int(state.step),
        "command": sys.argv,
        "directory": os.getcwd(),
        "code": code,
        "extensions": dict(extensions),
        **describe_machine(),
        **data,
        "weights": hash_arrays(state.variables),
    }
    path = workdir / STARTS_FILE
    before = path.read_bytes() if path.exists() else b""
    _write(path, before + json.dumps(start).encode() + b"\n")
    return told


def record_result(workdir: Path, state: TrainState) -> None:
    """Writes the hashes of what the run in `workdir` came to."""
    if not processes.is_first():
        return
    result = {
        "step": int(state.step),
        "parameters": hash_arrays(state.variables.params),
        "buffers": hash_arrays(state.variables.buffers),
        "average": None if state.average is None else hash_arrays(state.average),
        "metrics": hash_metrics(repeatable_metrics(workdir)),
    }
    _write(workdir / RESULT_FILE, json.dumps(result, indent=2).encode() + b"\n")


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The starts whose steps are in the run's result: not those after which it went on from where they began, or
    earlier. Raises `UserError` where nothing is recorded.
    """
    path, result = workdir / STARTS_FILE, read_result(workdir)
    try:
        starts = [json.loads(line) for line in path.read_text().splitlines()]
        # A start's steps hold until another begins before them.
        steps = [start["step"] for start in starts] + [result["step"]]
        ends = [min(steps[later:]) for later in range(1, len(steps))]
        return [start for start, end in zip(starts, ends, strict=True) if start["step"] < end]
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {path.name}, which says how to repeat it; train it again") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); train the run again") from None


def read_result(workdir: Path) -> dict[str, Any]:
    """Read what `record_result` wrote. Raises `UserError` where the run has not finished."""
    path = workdir / RESULT_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no finished run (it has no {path.name}); go on with it first:"
            f" mask-rcnn train --workdir {workdir}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); start the run again to have it written") from None


def repeatable_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what is of the machine, each once. Raises `UserError` where it has none."""
    path = workdir / METRICS_FILE
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if not all(isinstance(line, dict) and not any(map(_is_nested, line.values())) for line in lines):
            raise ValueError("a line is no table of numbers")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); bring it back, or train the run again") from None
    kept: dict[frozenset[Any], dict[str, Any]] = {}
    for line in lines:
        values = {n: value for n, value in line.items() if n == "step" or n.partition("/")[0] in _REPEATABLE}
        kept.setdefault(frozenset(values.items()), values)
    return list(kept.values())


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | dict)


def hash_metrics(lines: list[dict[str, Any]]) -> str:
    """sha256 over what `repeatable_metrics` gives."""
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def hash_arrays(tree: Any) -> str:
    """sha256 over the names, types, shapes and bits of a tree's arrays, in the order of the names."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for name, leaf in sorted(leaves.items()):
        values = np.asarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def describe_machine() -> dict[str, Any]:
    """Python, packages, devices, and the environment that jax and XLA read."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _packages()},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name == "XLA_FLAGS" or (name.startswith("JAX_") and "CACHE" not in name)
        },
    }


def _packages() -> list[str]:
    """Return the versions of the installed dependencies, and of the parts of jax that compute."""
    try:
        required = importlib.metadata.requires("mask-rcnn-jax") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        required = []
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line}
    plugins = {found.name for found in importlib.metadata.distributions() if found.name.startswith("jax-cuda")}
    return sorted(names | plugins | {"jax", "jaxlib", "numpy"})


def describe_code() -> tuple[dict[str, Any], bytes]:
    """A hash over the package's files, and the git revision they are of where they lie in a checkout; also what is
    changed in them since, untracked ones included, as `git apply` takes it, up to just beyond what is kept of it.
    """
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    code: dict[str, Any] = {"hash": digest.hexdigest(), "revision": None, "changes": None}
    root = _PACKAGE.parent
    # A package installed into the environment of some other project's checkout is none of that checkout.
    if _git(root, "ls-files", "--error-unmatch", "mask_rcnn_jax/__init__.py") is None:
        return code, b""
    revision = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "diff", *_PATCH, "HEAD", "--", "mask_rcnn_jax") or b""
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "mask_rcnn_jax/*.py") or b""
    for name in untracked.split(b"\0")[:-1]:
        if len(changes) <= _MOST_CHANGES:
            changes += _git(root, "diff", *_PATCH, "--no-index", "--", "/dev/null", os.fsdecode(name)) or b""
    return code | {"revision": revision and revision.decode().strip()}, changes


def _git(root: Path, *arguments: str) -> bytes | None:
    """Return what git prints, as far as it is needed, or None where there is no git, no checkout, or no such file."""
    command = ["git", "-C", str(root), *arguments]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            printed = process.stdout.read(_MOST_CHANGES + 1) if process.stdout else b""
            if len(printed) > _MOST_CHANGES:
                process.kill()
                return printed
    except OSError:
        return None
    # `git diff --no-index` answers 1 where the files differ.
    return printed if process.returncode == 0 or (process.returncode == 1 and printed) else None


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)
