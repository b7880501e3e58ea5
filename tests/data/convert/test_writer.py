"""The directory that a conversion leaves: whole or not at all, linked images, stable classes."""

import errno
import json
import os
from pathlib import Path

import pytest

import mask_rcnn_jax.data.convert.writer as writer
from tests.data.convert.known import convert, load, write_image, write_json

SQUARE = [[5, 5], [25, 5], [25, 25], [5, 25]]


def write_input(root: Path, labels=("b", "a"), names=("1", "2")) -> Path:
    for name in names:
        write_image(root / f"{name}.jpg")
        shapes = [{"label": label, "points": SQUARE, "shape_type": "polygon"} for label in labels]
        write_json(root / f"{name}.json", {"shapes": shapes, "imagePath": f"{name}.jpg"})
    return root


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_images_are_linked_or_copied(tmp_path):
    source = write_input(tmp_path / "in")
    for how in ("link", "symlink", "copy"):
        out = tmp_path / how
        assert convert("labelme", source, "--out", out, "--images", how) == 0
        image = out / "train" / "1.jpg"
        assert image.read_bytes() == (source / "1.jpg").read_bytes()
        assert image.is_symlink() == (how == "symlink")
        assert image.samefile(source / "1.jpg") == (how != "copy")
        assert len(load(out).records) == 2
    assert everything(tmp_path / "link") == everything(tmp_path / "copy")  # the same bytes every time


def test_symbolic_links_where_hard_ones_fail(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert convert("labelme", write_input(tmp_path / "in"), "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "train" / "1.jpg").is_symlink()


def test_copies_where_no_links_are(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    source = write_input(tmp_path / "in")
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert convert("labelme", source, "--out", tmp_path / "out") == 0
    image = tmp_path / "out" / "train" / "1.jpg"
    assert not image.samefile(source / "1.jpg")
    assert image.read_bytes() == (source / "1.jpg").read_bytes()
    assert convert("labelme", source, "--out", tmp_path / "other", "--images", "symlink") == 2


def test_an_existing_split_is_kept(tmp_path, capsys):
    source, out = write_input(tmp_path / "in"), tmp_path / "out"
    assert convert("labelme", source, "--out", out) == 0
    before = everything(out)
    write_input(source, labels=("a",))
    assert convert("labelme", source, "--out", out) == 2
    assert "train exists already" in capsys.readouterr().err
    assert everything(out) == before
    assert convert("labelme", source, "--out", out, "--overwrite") == 0
    assert load(out).class_names == ("a",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("moment", ["dumps", "_place", "_move"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, moment, overwrite):
    source, out = write_input(tmp_path / "in"), tmp_path / "out"
    if overwrite:
        assert convert("labelme", source, "--out", out) == 0
    before = everything(tmp_path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(json if moment == "dumps" else writer, moment, interrupt)
    assert convert("labelme", source, "--out", out, *["--overwrite"] * overwrite) == 130
    assert everything(tmp_path) == before
    assert out.exists() == overwrite


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_failed_move_is_undone(tmp_path, monkeypatch, capsys, call):
    source, out = write_input(tmp_path / "in"), tmp_path / "out"
    assert convert("labelme", source, "--out", out) == 0
    before, calls, replace = everything(tmp_path), [], os.replace

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError("No space left on device")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", fail_once)
    assert convert("labelme", write_input(source, ("c",)), "--out", out, "--overwrite") == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    write_input(source)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_interruption_right_after_a_move(tmp_path, monkeypatch, call):
    source, out = write_input(tmp_path / "in"), tmp_path / "out"
    assert convert("labelme", source, "--out", out) == 0
    before, calls, replace = everything(tmp_path), [], os.replace

    def interrupt(*arguments):
        replace(*arguments)
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    assert convert("labelme", source, "--out", out, "--overwrite") == 130
    assert everything(tmp_path) == before


@pytest.mark.parametrize("call", [2, 3, 4])
def test_what_cannot_be_put_back_is_kept(tmp_path, monkeypatch, capsys, call):
    """The disk fails for good in the middle: what stood there is not deleted with what was to replace it."""
    source, out = write_input(tmp_path / "in"), tmp_path / "out"
    assert convert("labelme", source, "--out", out) == 0
    before, calls, replace = everything(out), [], os.replace

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) >= call:
            raise OSError("Input/output error")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", fail)
    assert convert("labelme", source, "--out", out, "--overwrite") == 2
    (replaced,) = tmp_path.glob(".out-*/replaced")
    assert f"(Input/output error), nor put back what it held, which lies in {replaced}" in capsys.readouterr().err
    kept = everything(out) | everything(replaced)
    assert {name: kept.get(name) for name in before} == before


@pytest.mark.parametrize("spelling", ["same", "link", "dots"])
@pytest.mark.parametrize("how", ["labelme", "via"])
def test_the_input_is_never_replaced(tmp_path, capsys, how, spelling):
    source = write_input(tmp_path / "set" / "train")
    if how == "via":
        for file in source.glob("*.json"):
            file.unlink()
        shape = {"name": "polygon", "all_points_x": [5, 25, 25], "all_points_y": [5, 5, 25]}
        regions = [{"shape_attributes": shape, "region_attributes": {}}]
        source = write_json(tmp_path / "via.json", {"k": {"filename": "1.jpg", "regions": regions}})
    before = everything(tmp_path)
    options = ["--images-dir", tmp_path / "set" / "train"] if how == "via" else []
    out = tmp_path / "set"
    if spelling == "link":
        (tmp_path / "link").symlink_to(out)
        before = everything(tmp_path)
        out = tmp_path / "link"
    elif spelling == "dots":
        out = out / "train" / ".."
    assert convert(how, source, "--out", out, "--overwrite", *options) == 2
    assert "--overwrite would delete" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_splits_share_their_classes(tmp_path, capsys):
    out = tmp_path / "out"
    assert convert("labelme", write_input(tmp_path / "1", ("b", "a")), "--out", out) == 0
    assert convert("labelme", write_input(tmp_path / "2", ("b",)), "--out", out, "--split", "val") == 0
    assert load(out).categories == load(out, "val").categories == (1, 2)
    assert load(out, "val").class_names == ("a", "b")
    assert list(load(out, "val").records[0].classes) == [1]
    before = everything(out)
    assert convert("labelme", write_input(tmp_path / "3", ("c",)), "--out", out, "--split", "more") == 2
    assert "classes c are not those of" in capsys.readouterr().err
    assert everything(out) == before


def test_classes_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("b\n\na\n")
    source = write_input(tmp_path / "in")
    assert convert("labelme", source, "--out", tmp_path / "out", "--classes", tmp_path / "names.txt") == 0
    assert load(tmp_path / "out").class_names == ("b", "a")


def test_a_share_of_the_images_becomes_val(tmp_path):
    """By their names, wherever they lie, and not simply the first."""
    names = [*map(str, range(19)), os.fsdecode(b"caf\xe9")]
    found = []
    for run in ("1", "2"):
        source = write_input(tmp_path / run / "in", names=names)
        out = tmp_path / run / "out"
        assert convert("labelme", source, "--out", out, "--val-share", "0.25") == 0
        found.append({split: {path.stem for path in (out / split).iterdir()} for split in ("train", "val")})
    assert found[0] == found[1]
    assert len(found[0]["val"]) == 5
    assert found[0]["train"] | found[0]["val"] == set(names)
    assert found[0]["val"] != set(sorted(names)[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-share", "0.1"], "leaves 'train' or 'val' empty"),
        (["--split", "a/b"], "cannot be the name of a split"),
        (["--split", "Annotations"], "cannot be the name of a split"),
        (["--split", "VAL", "--val-share", "0.5"], "cannot be the name of a split"),
        (["--classes", ","], "names no class"),
        (["--classes", "a,a"], "'a' is named twice"),
        (["--classes", "x"], "Split 'train' of"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, options, message):
    assert convert("labelme", write_input(tmp_path / "in"), "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_splits_of_the_input(tmp_path, capsys):
    for split in ("train", "val"):
        write_input(tmp_path / "in" / split)
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "a", "--val-share", "0.5") == 2
    assert "has the splits train, val of its own" in capsys.readouterr().err
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "a", "--split", "test") == 2
    assert "has no split 'test'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "file" / "below") == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        convert("labelme", tmp_path / "in", "--out", tmp_path / "a", "--val-share", "2")
    assert exit_.value.code == 2
