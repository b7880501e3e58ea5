"""Broken exports: each loads, or is refused in one sentence. What surrounds a StableHLO program is broken elsewhere."""

import io
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from mask_rcnn_jax.export.runtime import METADATA_KEY, BrokenFileError, load
from tests.byte_mutants import mutant
from tests.json_mutants import mutants as json_mutants

STORED = Path(__file__).with_name("stored")
ROOT = Path(__file__).parents[2]

# Native code reads these files: if it takes the process down, that is not the process of the tests.
LOADING = """
import resource, sys
from pathlib import Path
from mask_rcnn_jax.export.runtime import BrokenFileError, load
from tests.export.test_fuzz_exports import mutants
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kind, file, count, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
broken = mutants(kind, count, seed)
file.write_bytes(next(broken))
load(file)
before, loaded = memory(), 0
for number, content in enumerate(broken):
    print("reading", number, file=sys.stderr, flush=True)
    file.write_bytes(content)
    try:
        load(file)
        loaded += 1
    except BrokenFileError as error:
        assert str(file) in str(error)
print(loaded, memory() - before)
"""


def mutants(kind: str, count: int, seed: int) -> Iterator[bytes]:
    """The whole file, and then broken ones; of StableHLO, the program is what is broken."""
    sound, rng = lzma.decompress(STORED.with_suffix(f".{kind}.xz").read_bytes()), Random(seed)
    yield sound
    for _ in range(count):
        yield mutant([sound], rng) if kind == "onnx" else with_broken_program(sound, rng)


def with_broken_program(export: bytes, rng: Random) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(export)) as whole, zipfile.ZipFile(result, "w") as broken:
        for name in whole.namelist():
            content = whole.read(name)
            broken.writestr(name, mutant([content], rng) if name == "program.bin" else content)
    return result.getvalue()


def fuzz(kind: str, folder: Path, count: int, seed: int) -> None:
    command = [sys.executable, "-c", LOADING, kind, folder / f"a.{kind}", str(count), str(seed)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded, memory = map(int, done.stdout.splitlines()[-1].split())  # ONNX Runtime may print before
    assert 0 < loaded < count
    assert memory < 1 << 20  # KiB


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_mutants_load_or_are_refused(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    fuzz(kind, tmp_path, 100, seed=0)


def test_names_that_are_not_text_are_damage(tmp_path):
    pytest.importorskip("onnxruntime")
    (sound,) = mutants("onnx", 0, seed=0)
    file = tmp_path / "a.onnx"
    file.write_bytes(sound.replace(b"Identity", b"\xb9dentity"))
    with pytest.raises(BrokenFileError, match=r"a\.onnx is no ONNX model"):
        load(file)


@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(10_000, 1, marks=pytest.mark.slow, id="slow")])
def test_what_a_file_says_of_its_model(tmp_path, monkeypatch, count, seed):
    said = {"class_names": ["a", "b"], "input_size": [64, 96], "batch": 2, "masks": "pasted"}
    properties: dict[str, str] = {}
    session = SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=properties), get_outputs=lambda: []
    )
    onnxruntime = SimpleNamespace(InferenceSession=lambda *_, **__: session, get_available_providers=lambda: [])
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    file, loaded = tmp_path / "a.onnx", 0
    file.touch()
    for content in json_mutants(said, count, seed):
        properties[METADATA_KEY] = content.decode(errors="replace")
        try:
            model = load(file)
        except BrokenFileError as error:
            message = str(error)
            assert str(file) in message
            continue
        loaded += 1
        assert all(isinstance(name, str) for name in model.class_names)
        assert [type(side) for side in model.input_size] == [int, int]
        assert model.batch is None or model.batch > 0
    assert 0 < loaded < count


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_many_mutants_load_or_are_refused(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    fuzz(kind, tmp_path, 10_000, seed=1)
