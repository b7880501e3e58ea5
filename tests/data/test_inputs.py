"""Paths, folders and patterns that name images."""

from pathlib import Path

import pytest
from PIL import Image

from mask_rcnn_jax.data.inputs import find_images


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
