"""Broken files of weights: each is tensors or refused in one sentence, and nothing that is in it is run."""

import io
import json
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.runtime import FORMAT, BrokenFileError, load
from mask_rcnn_jax.pretrained import read_tensors
from tests.byte_mutants import mutant
from tests.pretrained.test_files import Malice, as_pickle, as_stream, as_zip, torch_zip

TENSORS = {
    "conv.weight": np.arange(600, dtype=np.float32).reshape(10, 6, 2, 5),
    "conv.bias": np.array([0.5, -2], np.float16),
    "count": np.array(7, np.int64),
}
KINDS = ("pkl", "stream", "pth", "npz", "safetensors")


def originals(kind: str, folder: Path) -> list[bytes]:
    """Whole files, and some that would make the folder `trace`."""
    evil = {"a": Malice(os.mkdir, str(folder / "trace"))}
    if kind == "pkl":
        trees = [TENSORS, {"model": OrderedDict(TENSORS), "epoch": 3}]
        return [*(pickle.dumps(tree, protocol) for tree in trees for protocol in (2, 4)), as_pickle(evil)]
    if kind == "stream":
        return [as_stream(TENSORS), as_stream(evil)]
    if kind == "pth":
        file = torch_zip(folder / "a.pth", (20, 50), (50, 1))
        return [file.read_bytes(), as_zip(TENSORS), as_zip(evil)]
    if kind == "npz":
        plain, compressed = io.BytesIO(), io.BytesIO()
        np.savez(plain, **TENSORS)
        np.savez_compressed(compressed, **TENSORS)
        return [plain.getvalue(), compressed.getvalue()]
    return [safetensors.numpy.save(TENSORS), safetensors.numpy.save({"a": np.ones(3, ml_dtypes.bfloat16)})]


def unchecked(archive: bytes, rng: random.Random) -> bytes:
    """The zip file with one member changed under a right checksum, so that what is in it is read."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as whole, zipfile.ZipFile(result, "w") as changed:
        contents = {name: whole.read(name) for name in whole.namelist()}
        chosen = rng.choice(sorted(contents))
        contents[chosen] = mutant([contents[chosen]], rng)
        for name, content in contents.items():
            changed.writestr(name, content)
    return result.getvalue()


def mutants(sources: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        source = rng.choice(sources)
        is_zip = source.startswith(b"PK") and rng.random() < 0.7
        yield unchecked(source, rng) if is_zip else mutant([source], rng)


def fuzz(kind: str, folder: Path, count: int, seed: int) -> None:
    file = folder / f"a.{kind}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = 0
    for content in mutants(originals(kind, folder), count, seed):
        file.write_bytes(content)
        try:
            tensors = read_tensors(file)
        except UserError as error:
            message = str(error)
            assert message.startswith(str(file))
            assert "\n" not in message
        else:
            assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())
            kept += 1
    assert 0 < kept < count
    assert not (folder / "trace").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB


def exported() -> bytes:
    """What an exported model is besides its program."""
    content = io.BytesIO()
    metadata = {"format": FORMAT, "weights": 2, "input_size": [64, 96], "class_names": ["a"], "batch": None}
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        for number, array in enumerate(TENSORS.values()):
            with archive.open(f"weights/{number}.npy", "w") as member:
                np.save(member, array)
    return content.getvalue()


def fuzz_exports(folder: Path, count: int, seed: int) -> None:
    file = folder / "a.stablehlo"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in mutants([exported()], count, seed):
        file.write_bytes(content)
        with pytest.raises(BrokenFileError, match=r"a\.stablehlo"):
            load(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_tensors_or_refused(kind, tmp_path):
    fuzz(kind, tmp_path, 200, seed=0)


def test_mutants_of_exports_are_refused(tmp_path):
    fuzz_exports(tmp_path, 200, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutants_are_tensors_or_refused(kind, tmp_path):
    fuzz(kind, tmp_path, 10_000, seed=1)


@pytest.mark.slow
def test_many_mutants_of_exports_are_refused(tmp_path):
    fuzz_exports(tmp_path, 10_000, seed=1)
