"""Paths, folders and patterns that name images."""

from pathlib import Path

import pytest
from PIL import Image

from mask_rcnn_jax.cli.data import build_tfds, convert, lint
from mask_rcnn_jax.media.inputs import find_images


@pytest.mark.parametrize("folder", ["set [1]", "a*b", "what?", "[!x]"])
def test_a_folder_that_is_there_is_no_pattern(tmp_path: Path, folder: str) -> None:
    for name in (folder, "set 1", "axb", "whatx", "y"):
        (tmp_path / name / "part").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name / "part" / f"{name}.png")
    for pattern in ("*/*.png", "**/*.png", "p?rt/*"):
        found, problems = find_images([str(tmp_path / folder / pattern)])
        assert problems == []
        assert [image.path for image in found] == [tmp_path / folder / "part" / f"{folder}.png"]
        assert [image.name for image in found] == [f"part/{folder}"]


LONG = "a b.jpg " * 60  # a list of files in quotation marks, say


@pytest.mark.parametrize("text", [LONG, f"{LONG}/x", f"{LONG}*"])
def test_a_name_that_no_file_can_have(text: str) -> None:
    found, problems = find_images([text])
    assert not found
    assert len(problems) == 1


@pytest.mark.parametrize("format_", ["cityscapes", "id-masks", "labelme", "via", "yolo"])
def test_a_folder_that_no_file_system_holds(tmp_path: Path, capsys, format_: str) -> None:
    for command in (
        lambda: convert.main([format_, LONG, "--out", str(tmp_path / "out")]),
        lambda: lint.main([LONG]),
        lambda: build_tfds.main([LONG, "--out", str(tmp_path / "out")]),
    ):
        assert command() == 2
        assert LONG in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_place_that_no_file_system_holds(tmp_path: Path, capsys) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.5 0.9")
    assert convert.main(["yolo", str(tmp_path), "--classes", "x", "--out", str(tmp_path / LONG)]) == 2
    assert "cannot be written" in capsys.readouterr().err
