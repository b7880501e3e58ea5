"""Broken checkpoints: each loads, with the weights that were saved, or is refused in one sentence."""

import json
import os
import random
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import EVALUATION, by_stored_name, load_model, score, stored_metrics
from mask_rcnn_jax.inference.stored import Damaged, checksum
from tests.byte_mutants import mutant
from tests.json_mutants import mutants

# Each takes half a second: the model is traced for its shapes.
COUNTS = pytest.mark.parametrize(("count", "seed"), [(15, 0), pytest.param(1000, 1, marks=pytest.mark.slow, id="slow")])


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


def weights(checkpoint: Path) -> dict[str, int] | None:
    """The checksums of the weights; None where they are refused."""
    try:
        model = load_model(checkpoint)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(checkpoint))
        assert "\n" not in message
        assert len(message) - len(str(checkpoint)) < 1000
        return None
    return {name: checksum(np.asarray(leaf)) for name, leaf in by_stored_name(model.variables.params).items()}


@COUNTS
def test_its_metadata(checkpoint, count, seed):
    sound, file, loaded = weights(checkpoint), checkpoint / "metadata" / "metadata", 0
    for content in mutants(json.loads(file.read_bytes()), count, seed):
        file.write_bytes(content)
        found = weights(checkpoint)
        assert found in (None, sound)
        loaded += found is not None
    assert 0 < loaded < count


@pytest.mark.parametrize(("count", "seed"), [(200, 0), pytest.param(10_000, 1, marks=pytest.mark.slow, id="slow")])
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


@COUNTS
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
