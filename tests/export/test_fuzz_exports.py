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

import pytest

from mask_rcnn_jax.export.runtime import BrokenFileError, load
from tests.byte_mutants import mutant

STORED = Path(__file__).with_name("stored")
AT_ONCE = 100

# Native code reads these files: if it takes the process down, that is not the process of the tests.
LOADING = """
import resource, sys
from mask_rcnn_jax.export.runtime import BrokenFileError, load
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load(sys.argv[1])
before, loaded = memory(), 0
for path in sys.argv[2:]:
    print("reading", path, file=sys.stderr, flush=True)
    try:
        load(path)
        loaded += 1
    except BrokenFileError as error:
        assert path in str(error)
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
    paths = []
    for number, content in enumerate(mutants(kind, count, seed)):
        paths.append(folder / f"{number}.{kind}")
        paths[-1].write_bytes(content)
    command = [sys.executable, "-c", LOADING, *map(str, paths)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded, memory = map(int, done.stdout.splitlines()[-1].split())  # ONNX Runtime may print before
    assert 0 < loaded < count
    assert memory < 1 << 20  # KiB


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_mutants_load_or_are_refused(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    fuzz(kind, tmp_path, AT_ONCE, seed=0)


def test_names_that_are_not_text_are_damage(tmp_path):
    pytest.importorskip("onnxruntime")
    (sound,) = mutants("onnx", 0, seed=0)
    file = tmp_path / "a.onnx"
    file.write_bytes(sound.replace(b"Identity", b"\xb9dentity"))
    with pytest.raises(BrokenFileError, match=r"a\.onnx is no ONNX model"):
        load(file)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 101))
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_many_mutants_load_or_are_refused(kind, seed, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    fuzz(kind, tmp_path, AT_ONCE, seed)
