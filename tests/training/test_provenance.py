"""What a run records of how it came about, and of what it came to."""

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import CocoDataset, Record, ShapesConfig, fingerprint
from mask_rcnn_jax.data.records.packed import Selection
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.training.datasets import check_alike
from mask_rcnn_jax.training.runs import provenance
from mask_rcnn_jax.training.runs.reproduce import how_to_get_code
from mask_rcnn_jax.training.step import TrainState, init_state
from tests.tiny import tiny_experiment


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_experiment(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def dataset(config):
    config.data.source.prepare()
    return config.data.source.load("train")


@pytest.fixture(scope="module")
def state(config):
    return init_state(config)


def test_all_processes_have_the_same_data(dataset, monkeypatch):
    other = replace(dataset, records=list(dataset.records)[1:])
    check_alike({"train": dataset})
    monkeypatch.setattr(processes, "index_and_count", lambda: (0, 3))
    monkeypatch.setattr(processes, "gather", lambda found: [found] * 3)
    check_alike({"train": dataset, "val": other})
    monkeypatch.setattr(processes, "gather", lambda found: [found, found, found | {"val": fingerprint(dataset)}])
    with pytest.raises(UserError, match=r"process 2 has read other images or annotations of .* than the first"):
        check_alike({"train": dataset, "val": other})


def test_a_start_says_what_is_needed_to_repeat_it(state, dataset, tmp_path):
    data = provenance.check_data(tmp_path, {"train": dataset})
    provenance.record_start(tmp_path, state, data, {})
    assert provenance.record_start(tmp_path, replace(state, step=jax.numpy.int32(3)), data, {}) == []
    first, second = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert (first["step"], second["step"]) == (0, 3)
    assert first["command"] == sys.argv
    assert {"jax", "jaxlib", "numpy", "flax", "optax", "grain"} <= first["packages"].keys()
    assert first["packages"]["jax"] == jax.__version__
    assert first["devices"] == {"platform": "cpu", "kind": "cpu", "count": len(jax.devices()), "processes": 1}
    assert first["data"] == {"train": fingerprint(dataset)}
    instances = sum(len(record.boxes) for record in dataset.records)
    assert first["data_size"] == {"train": f"16 images with {instances} instances"}
    assert first["weights"] == second["weights"] == provenance.hash_arrays(state.variables)


def test_the_environment_of_jax_is_told(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_a_test=1")
    monkeypatch.setenv("JAX_OF_A_TEST", "2")
    monkeypatch.setenv("SECRET_KEY", "3")
    environment = provenance.describe_machine()["environment"]
    assert environment["XLA_FLAGS"] == "--xla_of_a_test=1"
    assert environment["JAX_OF_A_TEST"] == "2"
    assert "SECRET_KEY" not in environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with a package of one file, in the place of ours."""
    package = tmp_path / "project" / "mask_rcnn_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    return package


def git(checkout, *arguments: str) -> str:
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", "-C", str(checkout.parent), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_is_told_by_revision_and_changes_that_bring_it_back(checkout, tmp_path):
    bare, changes = provenance.describe_code()
    assert (bare["revision"], changes) == (None, b"")
    git(checkout, "init", "-q")
    # A package that lies in a checkout to which it does not belong is not told by that checkout's revision.
    git(checkout, "commit", "-q", "--allow-empty", "-m", "empty")
    assert provenance.describe_code() == (bare, b"")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "one")
    clean, changes = provenance.describe_code()
    assert clean == bare | {"revision": git(checkout, "rev-parse", "HEAD")}
    assert changes == b""

    (checkout / "__init__.py").write_text("a = 2\n")
    (checkout / "more.py").write_text("b = 'ü'\n")
    changed, changes = provenance.describe_code()
    assert changed["hash"] != clean["hash"]
    (tmp_path / "changes.diff").write_bytes(changes)
    git(checkout, "worktree", "add", "-q", str(tmp_path / "again"), clean["revision"])
    subprocess.run(["git", "apply", str(tmp_path / "changes.diff")], cwd=tmp_path / "again", check=True)
    for name in ("__init__.py", "more.py"):
        assert (tmp_path / "again" / "mask_rcnn_jax" / name).read_bytes() == (checkout / name).read_bytes()


def test_only_changes_of_the_package_are_kept_and_no_more_than_a_little(checkout, tmp_path):
    state = STATE
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    (checkout.parent / "notes.py").write_text("a = 1\n")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "one")
    environment = checkout.parent / "venv" / "lib"
    environment.mkdir(parents=True)
    for file in (environment / "other.py", environment / "mask_rcnn_jax.py", checkout.parent / "notes.py"):
        file.write_text("b = 2\n")
    assert provenance.describe_code()[1] == b""

    for content, kept in (("c = 3\n", True), ("c = 3\n" * 200_000, False)):
        (checkout / "more.py").write_text(content)
        told = provenance.record_start(tmp_path, state, {}, {})
        code = json.loads((tmp_path / "starts.jsonl").read_text().splitlines()[-1])["code"]
        assert (code["changes"] is not None) == kept
        assert told == ([] if kept else ["uncommitted changes of the code are not kept: they exceed 1 MiB"])
        assert len(list(tmp_path.glob("code-*.diff"))) == 1
        assert ("too large to be kept" in how_to_get_code(tmp_path, code)) == (not kept)
    # As much in a file that git knows.
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "two")
    (checkout / "more.py").write_text("d = 4\n" * 400_000)
    assert len(provenance.describe_code()[1]) > 1 << 20


STATE = TrainState(jax.numpy.int32(0), Variables({}, {}), None)


def few_records(count=2, box=10.0, folder="/data") -> CocoDataset:
    records = [
        Record(
            image_id=number,
            path=f"{folder}/{number}.png",
            height=32,
            width=48,
            boxes=np.array([[1, 2, box, 20]], np.float32),
            classes=np.array([number % 2], np.int32),
            segmentations=[[np.array([1, 2, 10, 2, 10, 20], np.float32)]],
            iscrowd=np.array([False]),
            areas=np.array([162], np.float32),
            annotation_ids=np.array([number], np.int64),
            source=number % 2,
        )
        for number in range(count)
    ]
    return CocoDataset(Path("a.json"), records, (3, 7), ("cat", "dog"))


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    def start(step: int, **datasets) -> None:
        """With a checkpoint of this step, and none later."""
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        for item in ("model", "metadata") if step else ():
            (tmp_path / "checkpoints" / str(step) / item).mkdir(parents=True)
        data = provenance.check_data(tmp_path, datasets)
        provenance.record_start(tmp_path, replace(STATE, step=jax.numpy.int32(step)), data, {})

    start(0, train=few_records(box=5.0), val=few_records())
    start(0, train=few_records(), val=few_records())  # nothing was trained on the other data
    start(4, train=few_records(folder="/moved"), val=few_records(folder="/elsewhere"))
    lines = (tmp_path / "starts.jsonl").read_text()
    for changed, how in (
        ({"train": few_records(3), "val": few_records()}, "the train split .*2 images with 2 inst.* then, 3 .* now"),
        (
            {"train": few_records(), "val": few_records(box=9.0)},
            "the val split .*2 images.*, but other names, sizes",
        ),
    ):
        with pytest.raises(UserError, match=how):
            start(5, **changed)
    assert (tmp_path / "starts.jsonl").read_text() == lines
    # The steps after a start that was itself gone back from do not count.
    start(2, train=few_records(), val=few_records())
    # Records of other versions, and spoilt ones, end no run.
    older = {"step": 0, "data": {"train": "0"}}
    (tmp_path / "starts.jsonl").write_text(json.dumps(older) + "\n")
    with pytest.raises(UserError, match="the train split is not the one"):
        start(5, train=few_records())
    start(5, train=replace(few_records(), weights=(1.0, 1.0)))
    (tmp_path / "starts.jsonl").write_text("[]\n")
    start(5, train=few_records())


def test_a_fingerprint_stays_what_it_was():
    """Runs are compared with what they recorded: another value for the same data would keep them from being resumed."""
    dataset = few_records()
    one_source = replace(dataset, records=[replace(record, source=0) for record in dataset.records])
    assert fingerprint(one_source) == "3819308d6d5f78e65098514311b8f81a0d3387fdedec7d9391972757b4a06a6f"


def test_a_mixture_may_have_one_of_its_sources_moved():
    dataset = few_records(4)
    moved = [replace(r, path=f"/other/place{r.path}" if r.source else r.path) for r in dataset.records]
    assert fingerprint(replace(dataset, records=moved)) == fingerprint(dataset)


def test_the_result_is_of_every_bit(config, state, tmp_path):
    lines = [{"step": 1, "loss": 2.0, "images_per_second": 5.0}, {"step": 1, "segm/AP": 0.25, "data_wait": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def result(state):
        provenance.record_result(tmp_path, state)
        return provenance.read_result(tmp_path)

    first = result(state)
    assert first["average"] is None
    leaves, structure = jax.tree.flatten(state.variables.params)
    leaves[-1] = np.nextafter(np.asarray(leaves[-1]), np.float32(9))
    moved = replace(state, variables=replace(state.variables, params=structure.unflatten(leaves)))
    assert result(moved) == first | {"parameters": provenance.hash_arrays(structure.unflatten(leaves))}
    assert result(moved)["parameters"] != first["parameters"]
    # Speeds, and a last evaluation that was repeated, change nothing; a loss does.
    again = [lines[0] | {"images_per_second": 6.0}, *lines[1:], *lines[1:]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in again))
    assert result(state) == first
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line | {"loss": 2.5}) + "\n" for line in lines))
    assert result(state)["metrics"] != first["metrics"]


def test_repeated_lines_are_found_without_comparing_all(tmp_path, monkeypatch):
    compared = 0

    class Value(float):
        __hash__ = float.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return float.__eq__(self, other)

    lines = [{"step": 1.0, "loss": float(number)} for number in range(300)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*lines, *lines)))
    monkeypatch.setattr(provenance.json, "loads", functools.partial(json.loads, parse_float=Value))
    found = provenance.repeatable_metrics(tmp_path)
    monkeypatch.undo()
    assert compared < 10 * len(lines)
    assert found == lines


def test_starts_that_came_to_nothing_are_not_the_runs(tmp_path):
    steps = [0, 0, 4, 4, 6, 2, 8]  # begun again, gone on from 4 twice, from 6, back to 2, and looked at after its end
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps({"step": s, "n": n}) + "\n" for n, s in enumerate(steps)))
    with pytest.raises(UserError, match=r"holds no finished run \(it has no result\.json\)"):
        provenance.read_starts(tmp_path)
    (tmp_path / "result.json").write_text('{"step": 8}')
    assert [start["n"] for start in provenance.read_starts(tmp_path)] == [1, 5]
    (tmp_path / "starts.jsonl").unlink()
    with pytest.raises(UserError, match=r"no starts\.jsonl"):
        provenance.read_starts(tmp_path)


def test_a_fingerprint_is_of_what_the_data_says_and_not_of_where_it_lies(config, dataset, tmp_path):
    source: ShapesConfig = config.data.source
    elsewhere, others = replace(source, root=str(tmp_path / "a")), replace(source, root=str(tmp_path / "b"), seed=1)
    for written in (elsewhere, others):
        written.prepare()
    assert fingerprint(elsewhere.load("train")) == fingerprint(dataset)
    other = others.load("train")
    count = len(dataset.records)
    some, order = (Selection(dataset.records, rows) for rows in (np.arange(count - 1), np.arange(count)[::-1]))
    as_list = fingerprint(replace(dataset, records=list(dataset.records)))
    renamed = [replace(dataset.records[0], path="elsewhere/other.png"), *dataset.records[1:]]
    variants = [other, replace(dataset, records=some), replace(dataset, records=order)]
    variants += [replace(dataset, class_names=dataset.class_names[::-1]), replace(dataset, records=renamed)]
    for name, value in {"boxes": 1, "classes": 1, "areas": 1}.items():
        record = dataset.records[0]
        changed = replace(record, **{name: getattr(record, name) + np.asarray(value, getattr(record, name).dtype)})
        variants.append(replace(dataset, records=[changed, *dataset.records[1:]]))
    prints = {fingerprint(variant) for variant in variants}
    assert len(prints | {fingerprint(dataset)}) == len(variants) + 1
    assert as_list == fingerprint(dataset)
