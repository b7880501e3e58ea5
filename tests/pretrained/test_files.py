"""Reading files of weights: round trips against what wrote them, and nothing that a file asks for is run."""

import io
import os
import pickle
import tracemalloc
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mask_rcnn_jax.arrays import budget
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.pretrained import read_tensors

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.array([0.5, -2], np.float16),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "wide": np.linspace(0, 1, 6).reshape(2, 3).T,  # float64, not contiguous
}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].flags.c_contiguous, name
        np.testing.assert_array_equal(found[name], tensor)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- Round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_numpy_arrays(tmp_path, protocol):
    tree = {"model": TENSORS, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    file = written(tmp_path / "model_final.pkl", pickle.dumps(tree, protocol))
    assert_same(read_tensors(file), TENSORS)


def test_blobs_of_detectron1_are_found_beside_their_settings(tmp_path):
    tree = {"blobs": {"conv1_w": np.ones((2, 1), ">f4"), "lr": np.float64(0.5)}, "cfg": "MODEL: 1"}
    found = read_tensors(written(tmp_path / "R-50.pkl", pickle.dumps(tree, 2)))
    assert_same(found, {"conv1_w": np.ones((2, 1), np.float32), "lr": np.array(0.5)})


def test_strings_of_python_2_are_bytes(tmp_path):
    # Written by hand: NumPy's pickle of a float32 vector [1] as Python 2 wrote it, whose data is a str.
    content = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x00\x00\x80?tbs."
    )
    assert_same(read_tensors(written(tmp_path / "old.pkl", content)), {"a": np.ones(1, np.float32)})


def test_npz(tmp_path):
    np.savez(tmp_path / "weights.npz", **TENSORS)
    assert_same(read_tensors(tmp_path / "weights.npz"), TENSORS)


def test_safetensors_with_bfloat16(tmp_path):
    tensors = {"a": np.arange(3, dtype=np.float16), "b": np.array([1.5, -3], ml_dtypes.bfloat16)}
    file = written(tmp_path / "weights.safetensors", safetensors.numpy.save(tensors))
    assert_same(read_tensors(file), {"a": tensors["a"], "b": np.array([1.5, -3], np.float32)})


def test_the_content_decides_and_not_the_suffix(tmp_path):
    file = written(tmp_path / "weights.pth", safetensors.numpy.save({"a": np.ones(2, np.float32)}))
    assert_same(read_tensors(file), {"a": np.ones(2, np.float32)})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("wrapped", ["", "model", "state_dict"])
def test_what_torch_saves(torchvision: ModuleType, tmp_path, zipped, wrapped):
    import torch

    base = torch.arange(12, dtype=torch.float64)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in TENSORS.items()} | {
        "bfloat": torch.tensor([1.5, -3.0]).bfloat16(),
        "number": torch.tensor(2.5).bfloat16(),
        "shared.rows": base[2:8].reshape(2, 3),  # these share a storage
        "shared.columns": base.reshape(3, 4)[:, 1],
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "expanded": torch.ones(1, 2).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "empty": torch.zeros(0, 4),
    }
    state = OrderedDict(tensors)
    vars(state)["_metadata"] = OrderedDict(version=2)
    checkpoint = {
        wrapped: state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"milestones": Counter({16: 1})},
        "args": Namespace(device=torch.device("cpu"), size=torch.Size([2]), dtype=torch.float32),
        "best": torch.tensor(1.0),
        "epoch": 3,
    }
    torch.save(checkpoint if wrapped else state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    expected = {name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy() for name, t in tensors.items()}
    assert_same(read_tensors(tmp_path / "a.pth"), expected)


def test_unsigned_integers_of_torch(torchvision: ModuleType, tmp_path):
    import torch

    torch.save({"a": torch.ones(2, dtype=torch.uint16), "b": torch.ones(2)}, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth"), {"a": np.ones(2, np.uint16), "b": np.ones(2, np.float32)})


def test_the_prefix_of_parallel_training_is_taken_off(tmp_path):
    file = written(tmp_path / "a.pkl", pickle.dumps({"module.a": np.ones(1), "module.b": np.ones(1)}))
    assert set(read_tensors(file)) == {"a", "b"}


# --- What is refused --------------------------------------------------------------------------------------------------


class Malice:
    """Pickles as a call that leaves a folder behind."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def as_pickle(tree: object) -> bytes:
    return pickle.dumps(tree, 2)


def as_zip(tree: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(tree))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def as_stream(tree: object) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    return b"".join(map(as_pickle, [*head, tree, []]))


@pytest.mark.parametrize("form", [as_pickle, as_zip, as_stream])
@pytest.mark.parametrize(
    "nest", [lambda x: x, lambda x: {"model": {"weight": x}}, lambda x: {"a": np.ones(1), "b": [x]}]
)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.mkdir, "posix.mkdir"),
        (os.system, "posix.system"),
        (eval, "__builtin__.eval"),
        (exec, "__builtin__.exec"),
        (getattr, "__builtin__.getattr"),
    ],
)
def test_code_is_refused_and_not_run(tmp_path, form, nest, function, name):
    trace = tmp_path / "trace"
    command = {os.mkdir: str(trace), os.system: f"mkdir {trace}"}.get(
        function, f"__import__('os').mkdir({str(trace)!r})"
    )
    file = written(tmp_path / "evil.pth", form(nest(Malice(function, command))))
    with pytest.raises(UserError) as refusal:
        read_tensors(file)
    assert name in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert "state_dict()" in str(refusal.value)
    assert not trace.exists()


def test_what_the_table_gives_cannot_be_changed(tmp_path):
    """A pickle may set attributes of what it was given; a container that is changed would stay so for the next file."""
    for given in (b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"):
        for state in (b"(NX\x05\x00\x00\x00itemsK\x01stb", b"}X\x05\x00\x00\x00itemsK\x01sb"):
            content = b"\x80\x02" + given + state.replace(b"(NX", b"N}X").replace(b"stb", b"s\x86b") + b"."
            with pytest.raises(UserError):
                read_tensors(written(tmp_path / "evil.pkl", content))
    assert_same(read_tensors(written(tmp_path / "a.pkl", pickle.dumps(OrderedDict(a=np.ones(1))))), {"a": np.ones(1)})


@pytest.mark.parametrize("code", ["O", "O8", "f4,O", "V8", "M8"])
def test_arrays_of_objects_are_refused(tmp_path, code):
    """Bytes read as pointers would be worse than code."""
    dtype = Malice(np.dtype, code)
    array = Malice(np.ones(1).__reduce__()[0], np.ndarray, (0,), b"b")
    content = pickle.dumps({"a": array}, 2)
    state = pickle.dumps((1, (1,), dtype, False, b"\x01" * 8), 2)[2:-1]
    content = content.replace(b"s.", state + b"bs.")
    with pytest.raises(UserError, match="damaged"):
        read_tensors(written(tmp_path / "evil.pkl", content))


def test_a_window_outside_its_storage_is_refused(torchvision: ModuleType, tmp_path):
    import torch

    torch.save({"a": torch.ones(4, 3)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for forged in (b"K\x40K\x03\x86", b"K\x04J\x00\x00\x00\x80\x86"):
        with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
            for name, content in members.items():
                assert not name.endswith("data.pkl") or b"K\x04K\x03\x86" in content
                archive.writestr(name, content.replace(b"K\x04K\x03\x86", forged))
        with pytest.raises(UserError, match="damaged"):
            read_tensors(tmp_path / "b.pth")


# --- Small files that would take much memory --------------------------------------------------------------------------


def peak_of(path: Path, message: str) -> int:
    """Bytes that reading took before it was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            read_tensors(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def torch_zip(path: Path, size: tuple[int, int], stride: tuple[int, int]) -> Path:
    """A file of `torch.save` with one tensor, a view of a storage of 1,000 zeros."""

    def pair(numbers: tuple[int, int]) -> bytes:
        return b"".join(b"J" + number.to_bytes(4, "little") for number in numbers) + b"\x86"

    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuM\xe8\3tQ"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + pair(size) + pair(stride) + b"\x89NtR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\1\0\0\0a" + view + b"s.")
        archive.writestr("archive/data/0", bytes(4000))
    return path


@pytest.mark.parametrize("stride", [(0, 0), (0, 1)])
def test_views_that_repeat_their_storage_are_limited(tmp_path, stride):
    found = read_tensors(torch_zip(tmp_path / "small.pth", (2, 500), stride))
    assert_same(found, {"a": np.zeros((2, 500), np.float32)})
    file = torch_zip(tmp_path / "bomb.pth", (1_000_000, 1000), stride)
    assert peak_of(file, "would take more than") < 1 << 20


def test_members_that_unpack_to_too_much_are_limited(tmp_path, monkeypatch):
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, a=np.zeros(1 << 20), b=np.zeros(1 << 20))
    assert set(read_tensors(file)) == {"a", "b"}
    monkeypatch.setattr(budget, "_MOST_BYTES", 15 << 20)
    assert peak_of(file, "would take more than") < 1 << 20


def test_arrays_are_as_long_as_their_header_says(tmp_path):
    for shape in [(1 << 40,), (-1,), (3,), (1 << 62, 1 << 62)]:
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive, archive.open("a.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"shape": shape, "fortran_order": False, "descr": "<f4"})
            member.write(bytes(16))
        assert peak_of(tmp_path / "bomb.npz", "damaged") < 1 << 20


def test_numbers_of_a_pickles_objects_take_no_memory(tmp_path):
    """The standard library's implementation in C reserves as many places as the highest number asks for."""
    bomb = b"\x80\x02Nr" + (0x01FFFFFF).to_bytes(4, "little") + b"."
    assert peak_of(written(tmp_path / "bomb.pkl", bomb), "no tensors by name") < 1 << 20


# --- What is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"GIF89a...", "no file of weights"),
        (b"PK\x03\x04 and then nothing", "damaged"),
        (b"\x80\x02}q", "damaged"),
        (pickle.dumps([1, 2]), "no tensors by name"),
        (pickle.dumps({"epoch": 3}), "no tensors by name"),
        ((40).to_bytes(8, "little") + b'{"a": ', "damaged"),
    ],
)
def test_other_files_are_answered_in_one_sentence(tmp_path, content, message):
    file = written(tmp_path / "weights.pth", content)
    with pytest.raises(UserError, match=message) as refusal:
        read_tensors(file)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["pkl", "npz", "safetensors", "zip", "stream"])
def test_truncated_files_are_damaged(tmp_path, request, kind, kept):
    tensors = {"a": np.ones((64, 8), np.float32), "b": np.ones((64, 8), np.float32)}
    file = tmp_path / "whole"
    if kind in ("zip", "stream"):
        request.getfixturevalue("torchvision")
        import torch

        torch.save({n: torch.ones(64, 8) for n in tensors}, file, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "npz":
        with file.open("wb") as stream:
            np.savez(stream, **tensors)
    else:
        file.write_bytes(pickle.dumps(tensors) if kind == "pkl" else safetensors.numpy.save(tensors))
    content = file.read_bytes()
    with pytest.raises(UserError, match="damaged"):
        read_tensors(written(tmp_path / "part", content[: int(kept * len(content))]))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth: there is no such file"):
        read_tensors(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_tensors(tmp_path)


def test_a_whole_model_says_what_to_save(torchvision: ModuleType, tmp_path):
    import torch

    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        read_tensors(tmp_path / "model.pth")


def test_a_program_says_what_to_save(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", as_pickle({}))
        archive.writestr("script/code/__torch__.py", "class Model: ...")
    with pytest.raises(UserError, match="TorchScript"):
        read_tensors(tmp_path / "script.pt")
