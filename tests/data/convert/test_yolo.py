"""YOLO: lines and settings of every form, outlines that cover what an independent raster of them covers."""

import json

import numpy as np
import pytest
import yaml

from mask_rcnn_jax.data.convert import yolo
from tests.data.convert.known import (
    HEIGHT,
    WIDTH,
    block,
    convert,
    inside,
    iou,
    load,
    masks,
    named,
    write_image,
    write_json,
)
from tests.data.convert.test_outlines import KITE, NOTCHED


def yolo_line(index, corners):
    return " ".join([str(index), *(f"{value:.6f}" for x, y in corners for value in (x / WIDTH, y / HEIGHT))])


def yolo_folder(root, layout="images/{split}", splits=("train", "val"), lines=()):
    for split in splits:
        image = write_image(root / layout.format(split=split) / f"{split}.jpg")
        label = str(image.relative_to(root).with_suffix(".txt")).replace("images", "labels")
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_text("\n".join(lines or [yolo_line(1, KITE), "", yolo_line(0, NOTCHED)]))


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("images/{split}", {"path": ".", "train": "images/train", "val": "images/val"}),
        ("images/{split}", {"path": "nowhere", "train": ["images/train"], "val": "val.txt"}),
        ("{split}/images", {"train": "../train/images", "val": "../val/images"}),
    ],
)
@pytest.mark.parametrize("names", [["notched", "kite"], {1: "kite", 0: "notched"}])
def test_yolo_data_yaml(tmp_path, layout, settings, names):
    root = tmp_path / "in"
    yolo_folder(root, layout)
    (root / "val.txt").write_text("images/val/val.jpg\n")
    (root / "data.yaml").write_text(yaml.safe_dump(settings | {"names": names, "nc": 2}))
    assert convert("yolo", root, "--out", tmp_path / "out") == 0
    for split in ("train", "val"):
        dataset = load(tmp_path / "out", split)
        (record,) = dataset.records
        assert record.path == str(tmp_path / "out" / split / f"{split}.jpg")
        assert dataset.class_names == ("notched", "kite")
        assert named(dataset, record) == ["kite", "notched"]
        for mask, corners in zip(masks(record), (KITE, NOTCHED), strict=True):
            assert iou(mask, inside(corners)) > 0.96
        np.testing.assert_allclose(record.boxes, [[25, 5, 70, 55], [5, 5, 35, 35]], atol=1e-3)


@pytest.mark.parametrize("layout", ["images/{split}", "images", "."])
def test_yolo_classes_file(tmp_path, capsys, layout):
    splits = ("train", "val") if "split" in layout else ("train",)
    yolo_folder(tmp_path / "in", layout, splits)
    write_image(tmp_path / "in" / layout.format(split="train") / "nothing_here.jpg")
    (tmp_path / "in" / "classes.txt").write_text("notched\nkite\n")
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "1 images without a file of labels, taken as empty" in printed
    assert "nothing_here.jpg" in printed
    background, record = load(tmp_path / "out").records
    assert background.path.endswith("nothing_here.jpg")
    assert len(background.boxes) == 0
    assert len(record.boxes) == 2


def test_yolo_lines(tmp_path, capsys):
    lines = [
        yolo_line(0, KITE),
        "0 0.5 0.5 0.25 0.5",
        "0 0.1 0.1 0.2 0.2 0.3",
        "2 0.1 0.1 0.2 0.2 0.3 0.9",
        "0 10 10 40 10 40 40",
        "0 a b c",
        "0 nan 0.1 0.2 0.2 0.3 0.9",
        "nan 0.1 0.1 0.2 0.2 0.3 0.9",
        "inf 0.1 0.1 0.2 0.2 0.3 0.9",
    ]
    yolo_folder(tmp_path / "in", lines=lines)
    (tmp_path / "in" / "classes.txt").write_text("thing\nother\n")
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "out", "--split", "val") == 0
    assert not (tmp_path / "out" / "train").exists()
    assert len(load(tmp_path / "out", "val").records[0].boxes) == 1
    printed = capsys.readouterr().out
    for line in (
        "1 lines with a box and no outline (--boxes rectangle takes them as rectangles), left out",
        "1 lines with fewer than three points or half a point, left out",
        "3 lines with a class that has no name, left out",
        "2 lines whose coordinates are not shares of the image's sides, left out",
        "1 lines that do not hold numbers, left out",
        "val.txt, line 6",
    ):
        assert line in printed
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "boxes", "--boxes", "rectangle") == 0
    record = load(tmp_path / "boxes").records[0]
    np.testing.assert_array_equal(masks(record)[1], block(15, 30, 45, 50))
    content = json.loads((tmp_path / "boxes" / "annotations" / "instances_train.json").read_text())
    assert content["annotations"][1]["bbox"] == [30, 15, 20, 30]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "images/train", "names": ["a"], "kpt_shape": [17, 3]}, "describes poses"),
        ({"train": "images/train"}, "no 'names'"),
        ({"train": "images/absent", "names": ["a"]}, "images/absent does not exist"),
        ({"train": "images/train", "names": ["a", "a"]}, "'a' is named twice"),
        ({"names": ["a"]}, "No images were found"),
        ({"train": "images/train", "names": [["a"]]}, "no 'names'"),
        ({"train": "images/train", "names": {"1": "a", "2": "b"}}, "no 'names'"),
        ({"train": "images/train", "names": 5}, "no 'names'"),
        ({"train": {"a": 1}, "names": ["a"]}, "names {'a': '1'} as images"),
        ({"train": ["images/train", ["x"]], "names": ["a"]}, "names ['x'] as images"),
        ({"train": "a\0b", "names": ["a"]}, "as images; write a folder"),
        ({"train": "a" * 2000, "names": ["a"]}, "does not exist; correct the path"),
        ({"path": ["x"], "train": "images/train", "names": ["a"]}, "has the path ['x']"),
        (["train"], "is not a data.yaml"),
    ],
)
def test_yolo_settings_that_are_refused(tmp_path, capsys, settings, message):
    yolo_folder(tmp_path / "in")
    write_json(tmp_path / "in" / "data.yaml", settings)
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"train: \xff", "it is not UTF-8 text"),
        (b"train: [", "cannot be read as YAML"),
        (b"a: &a [*a]", "cannot be read as YAML"),
        (b"[" * 2000, "nested too deeply"),
        (b"train: list.txt\nnames: [a]", "list.txt cannot be read: it is not UTF-8 text"),
    ],
)
def test_yolo_files_that_are_no_text(tmp_path, capsys, text, message):
    yolo_folder(tmp_path / "in")
    (tmp_path / "in" / "list.txt").write_bytes(b"\xff.jpg")
    (tmp_path / "in" / "data.yaml").write_bytes(text)
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_yolo_names_are_text_whatever_they_look_like(tmp_path):
    yolo_folder(tmp_path / "in", splits=("train",))
    text = "\ufefftrain: images/train\nval: ~\ntest:\nnames:\n  0: no\n  1: 1.0\n  2: 2020-13-45\n"
    (tmp_path / "in" / "data.yaml").write_text(text)
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["no", "1.0", "2020-13-45"]


@pytest.mark.parametrize("settings", [{"train": "images/train", "names": ["a"]}, None])
def test_yolo_folders_that_cannot_be_listed(tmp_path, capsys, monkeypatch, settings):
    yolo_folder(tmp_path / "in")
    (tmp_path / "in" / "classes.txt").write_text("a")
    if settings:
        write_json(tmp_path / "in" / "data.yaml", settings)

    def gone(folder):
        raise FileNotFoundError(2, "No such file or directory", str(folder / "x"))

    monkeypatch.setattr(yolo, "list_images", gone)
    assert convert("yolo", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert "images/train cannot be listed" in capsys.readouterr().err
