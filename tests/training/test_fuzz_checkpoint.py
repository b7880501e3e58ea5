"""Broken checkpoints: each loads, with the weights that were saved, or is refused in one sentence."""

import functools
import json
import os
import random
import resource
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import checkpoint as reading
from mask_rcnn_jax.inference import load_model, stored
from mask_rcnn_jax.inference.checkpoint import EVALUATION, by_stored_name, score, stored_metrics
from mask_rcnn_jax.inference.stored import Damaged, checksum
from mask_rcnn_jax.training import restore_for_inference
from mask_rcnn_jax.training.runs.workdir import read_config
from tests.byte_mutants import mutant
from tests.json_mutants import mutants


def counts(few: int) -> pytest.MarkDecorator:
    """How many mutants, and the seed."""
    many = pytest.param(10_000, 1, marks=pytest.mark.slow, id="slow")
    return pytest.mark.parametrize(("count", "seed"), [(few, 0), many])


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The one of the stored run."""
    with tarfile.open(Path(__file__).with_name("stored_run.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run" / "checkpoints" / "2"


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """The process's highest memory, which only grows, does so by less than a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


@pytest.fixture
def read_once(checkpoint, monkeypatch) -> Iterator[None]:
    """The arrays, which do not depend on the metadata, are read once."""
    with ocp.CheckpointManager(checkpoint.parent, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        arrays = manager.restore(2, args=ocp.args.Composite(model=ocp.args.StandardRestore()))
        monkeypatch.setattr(manager, "restore", lambda *_, **__: arrays)
        monkeypatch.setattr(ocp, "CheckpointManager", lambda *_, **__: nullcontext(manager))
        monkeypatch.setattr(reading, "stored_shapes", functools.cache(reading.stored_shapes))
        read = stored._open
        in_memory = functools.cache(lambda item, name: tensorstore.array(read(item, name).read().result()))
        monkeypatch.setattr(stored, "_open", in_memory)
        yield


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Lets what is refused pass where that is done in one sentence about `path`."""
    try:
        yield
    except UserError as error:
        message = str(error)
        about, said = message[: len(str(path))], message[len(str(path)) :]
        assert (about, "\n" in said, len(said) < 1000) == (str(path), False, True)


def weights(checkpoint: Path) -> dict[str, int] | None:
    """The checksums of the weights; None where they are refused."""
    with refusals(checkpoint):
        params = load_model(checkpoint).variables.params
        return {name: checksum(np.asarray(leaf)) for name, leaf in by_stored_name(params).items()}
    return None


def is_within(tree: Any, whole: Any) -> bool:
    """Whether `whole` is `tree`, with settings besides that an older file may lack."""
    if isinstance(tree, dict) and isinstance(whole, dict):
        return all(name in whole and is_within(value, whole[name]) for name, value in tree.items())
    if isinstance(tree, list) and isinstance(whole, list):
        return len(tree) == len(whole) and all(map(is_within, tree, whole))
    return tree == whole


@counts(50)
def test_the_configuration_of_its_run(checkpoint, count, seed):
    workdir = checkpoint.parents[1]
    file, loaded = workdir / "config.json", 0
    for content in mutants(json.loads(file.read_bytes()), count, seed):
        file.write_bytes(content)
        with refusals(file):
            config = read_config(workdir)
            assert is_within(json.loads(content), to_json(config))
            loaded += 1
    assert 0 < loaded < count


@counts(50)
@pytest.mark.usefixtures("read_once")
def test_its_metadata(checkpoint, count, seed):
    """In every other mutant the configuration in it is what is broken."""
    file, loaded = checkpoint / "metadata" / "metadata", 0
    tree = json.loads(file.read_bytes())
    around, inside = json.dumps(tree | {"config": "@config@"}).encode(), mutants(tree["config"], count, seed + 1)
    for number, content in enumerate(mutants(tree, count, seed)):
        file.write_bytes(content if number % 2 else around.replace(b'"@config@"', next(inside)))
        with refusals(checkpoint):
            config, _, metadata = restore_for_inference(checkpoint)
            found = json.loads(file.read_bytes())
            assert is_within(found["config"], to_json(config))
            assert list(metadata.class_names) == found["class_names"]
            assert list(metadata.category_ids) == found["category_ids"]
            loaded += 1
    assert 0 < loaded < count


@counts(200)
def test_its_evaluation(checkpoint, count, seed):
    file, loaded = checkpoint / EVALUATION, 0
    for content in mutants(json.loads(file.read_bytes()), count, seed):
        file.write_bytes(content)
        try:
            metrics = stored_metrics(checkpoint)
        except Damaged:
            continue
        loaded += 1
        assert metrics is None or isinstance(score(metrics), int | float)
    assert 0 < loaded < count


@counts(10)
def test_its_arrays(checkpoint, count, seed):
    rng, sound, loaded = random.Random(seed), weights(checkpoint), 0
    files = sorted(path for path in (checkpoint / "model").rglob("*") if os.path.isfile(path))
    for _ in range(count):
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(mutant([content], rng))
        found = weights(checkpoint)
        file.write_bytes(content)
        assert found in (None, sound)
        loaded += found is not None
    assert 0 < loaded < count


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (b'[{"key": "buffers", "key_type": 2}]', b'[{"key": "bufers", "key_type": 2}]'),
        (b'[{"key": "buffers", "key_type": 2}]', b'[{"key": "buffers", "key_type": 1}]'),
        (b"('buffers',)", b"('bufers',)"),
        (b'"Dict", "skip_deserialize": true', b'"Dibt", "skip_deserialize": true'),
        (b'"Dict", "skip_deserialize": true', b'"Dict", "skip_deserialize": false'),
    ],
)
def test_its_tree_is_what_orbax_can_restore(checkpoint, written, instead):
    file = checkpoint / "model" / "_METADATA"
    content = file.read_bytes()
    assert written in content
    file.write_bytes(content.replace(written, instead))
    with pytest.raises(Damaged, match=r"buffers|bufers"):
        stored.stored_shapes(checkpoint / "model")


@pytest.mark.parametrize("instead", [b'"chunk_shape": null', b'"chunk_shapes": [4]'])
def test_its_arrays_have_the_shapes_that_orbax_reads(checkpoint, instead):
    (file,) = (checkpoint / "model" / "array_metadatas").iterdir()
    file.write_bytes(file.read_bytes().replace(b'"chunk_shape": [4]', instead, 1))
    with pytest.raises((Damaged, stored.Unfamiliar)):
        stored.stored_shapes(checkpoint / "model")
