"""What `mask-rcnn predict` writes, from detections at hand: nothing here runs a model."""

import csv
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.cli.prediction.outputs import FORMATS, ReadImage
from mask_rcnn_jax.cli.prediction.tables import open_table
from mask_rcnn_jax.cli.prediction.videos import ImageSequence, predict_clip
from mask_rcnn_jax.disk.output_folder import RECORD, OutputFolder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.media.inputs import InputImage, find_images
from tests.data.coco_files import annotation, write_dataset
from tests.inference.test_detections import HEIGHT, WIDTH, some

IDS = (1, 2, 3)
ODD = os.fsdecode(b"caf\xe9\n=1.jpg")
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def write_all(
    out: Path, path: str, found: Detections, formats: Iterable[str] = FORMATS, read: ReadImage = lambda: PIXELS
) -> None:
    with ExitStack() as stack:
        for name in formats:
            writer = stack.enter_context(FORMATS[name](OutputFolder(out), IDS))
            writer.write(Path(path).stem, replace(found, path=path), read)


def fail() -> np.ndarray:
    raise UserError("the image cannot be read")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_names_that_are_no_text_are_written_by_every_format(tmp_path) -> None:
    labels = ("=HYPERLINK(1)", "a\nb\ud800" + "é" * 200, "../../c/\udce9")
    write_all(tmp_path, ODD, replace(some(), class_names=labels))
    with open(tmp_path / "detections.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == [ODD] * 4
    escaped = labels[1].replace("\ud800", "\\ud800")
    assert [row[2] for row in rows] == [labels[2], f"'{labels[0]}", escaped, escaped]
    assert b"caf\xe9\n=1.jpg" in (tmp_path / "detections.csv").read_bytes()
    coco = json.loads((tmp_path / "coco.json").read_bytes())
    assert [image["file_name"] for image in coco["images"]] == [ODD]
    assert [category["name"] for category in coco["categories"]] == list(labels)
    stem = Path(ODD).stem
    written = files(tmp_path)
    for name in (f"overlays/{stem}.jpg", f"labels/{stem}.png", f"polygons/{stem}.geojson"):
        assert name in written
    assert len(list((tmp_path / "cutouts" / stem).iterdir())) == 3


@pytest.mark.parametrize("first", "=+-@\t\r\n\uff1d")
def test_no_cell_is_a_formula(tmp_path, first) -> None:
    with open_table(tmp_path / "a.csv") as append:
        append([first + "cmd|'/C calc'!A0", f"a{first}", -1.5, np.float32(-2), None])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        ((formula, *rest),) = csv.reader(file)
    assert formula == "'" + first + "cmd|'/C calc'!A0"
    assert rest == [f"a{first}", "-1.5", "-2.0", ""]


def test_files_of_several_images_are_whole_or_not_there(tmp_path) -> None:
    write_all(tmp_path, "a.png", some(), ["csv", "coco"])
    before = [(tmp_path / name).read_bytes() for name in ("coco.json", "detections.csv")]
    with pytest.raises(UserError, match="cannot be read"):
        write_all(tmp_path, "b.png", some(), ["csv", "coco", "overlay"], fail)
    assert [(tmp_path / name).read_bytes() for name in ("coco.json", "detections.csv")] == before
    assert files(tmp_path) == [RECORD, "coco.json", "detections.csv"]


@pytest.mark.parametrize("name", FORMATS)
def test_what_may_be_written_is_known_before(tmp_path, name) -> None:
    for path in ("deep/one.JPG", "two.tif"):
        image = InputImage(Path(path), str(Path(path).with_suffix("")))
        with FORMATS[name](OutputFolder(tmp_path), IDS) as writer:
            writer.write(image.name, replace(some(), path=path), lambda: PIXELS)
        known = {file.relative_to(tmp_path).as_posix() for file in FORMATS[name].files(tmp_path, image)}
        assert known == {file for file in files(tmp_path) if image.name in file or "/" not in file} - {RECORD}


def test_what_an_earlier_run_found_more_goes(tmp_path) -> None:
    """Beside this run's files, it would be taken for a part of them; what somebody has changed or added stays."""
    write_all(tmp_path, "a.png", some(), ["cutouts", "overlay"])
    write_all(tmp_path, "b.png", some(), ["cutouts"])
    places = sorted((tmp_path / "cutouts" / "a").iterdir())
    places[1].write_text("changed")
    (tmp_path / "cutouts" / "a" / "0009_mine.png").write_text("added")
    none = replace(some(), boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), rles=())
    none = replace(none, classes=np.zeros(0, np.int32))
    write_all(tmp_path, "a.jpg", none, ["cutouts", "overlay"])
    assert files(tmp_path / "cutouts" / "a") == [places[1].name, "0009_mine.png"]
    assert files(tmp_path / "overlays") == ["a.jpg"]
    assert len(files(tmp_path / "cutouts" / "b")) == len(places) == 3


class Nothing:
    """Finds nothing in any frame."""

    def stream(self, images):
        none = np.zeros(0, np.float32)
        for _ in images:
            yield Detections(HEIGHT, WIDTH, none.reshape(0, 4), none, none.astype(np.int32), ("a", "b"), None)


def test_a_video_of_no_frame_leaves_what_is_there(tmp_path) -> None:
    pytest.importorskip("av", reason="needs PyAV, the extra `video`")
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "b.png").mkdir()
    clip = ImageSequence([InputImage(tmp_path / "a.png", "a")], Fraction(25), 10**6)
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        predict_clip(Nothing(), clip, "clip", OutputFolder(tmp_path / "out"), [])
    assert not files(tmp_path / "out")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert predict_clip(Nothing(), clip, "clip", OutputFolder(tmp_path / "out"), []) == (1, 0)
    assert files(tmp_path / "out") == [RECORD, "videos/clip.csv", "videos/clip.mp4"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("name", "inputs", "formats"),
    [
        ("videos/a.mp4", ["videos/a.mp4"], []),
        ("labels/a.png", ["labels"], ["--format", "labels"]),
        ("overlays/a.jpg", ["overlays/*.jpg"], []),
        ("overlays/walk.jpg", ["overlays/walk.jpg"], ["--format", "csv", "overlay"]),
    ],
)
def test_predict_replaces_no_input(tmp_path, monkeypatch, capsys, name, inputs, formats, overwrite) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("precious")
    # The checkpoint, which does not exist, is not looked for before.
    assert main(["predict", *inputs, "--out", ".", "--checkpoint", "none", *formats, *overwrite]) == 2
    assert f"error: {name} would replace the input" in capsys.readouterr().err
    assert files(tmp_path) == [name]


@pytest.mark.parametrize("name", ["labels/a.png", "cutouts/a/0001_cat.png", "detections.csv", "videos/b.csv"])
def test_predict_replaces_what_it_wrote_alone(tmp_path, capsys, name) -> None:
    for image in ("a.png", "b.mp4"):
        (tmp_path / image).write_text("")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("precious")
    command = ["predict", str(tmp_path / "*.*"), "--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "none")]
    command += ["--format", "labels", "cutouts", "csv"]
    assert main(command) == 2
    assert f"{name} is there already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 2
    assert "none holds no checkpoints" in capsys.readouterr().err
    with OutputFolder(tmp_path / "out", overwrite=True).replacing(tmp_path / "out" / name) as part:
        part.write_text("written")
    assert main(command) == 2
    assert "none holds no checkpoints" in capsys.readouterr().err


def test_names_that_are_too_long_are_in_no_ones_way(tmp_path) -> None:
    image = InputImage(Path("a.png"), "a" * 300)
    assert list(FORMATS["cutouts"].files(tmp_path, image)) == []


def test_names_of_inputs_need_be_no_text(tmp_path) -> None:
    (tmp_path / ODD).write_text("")
    ((image,), problems) = find_images([str(tmp_path)])
    assert image.name == Path(ODD).stem
    assert not problems


def test_export_and_browse_replace_what_they_wrote_alone(tmp_path, capsys) -> None:
    model, pictures = tmp_path / "model.stablehlo", tmp_path / "out"
    pictures.mkdir()
    data = write_dataset(tmp_path / "data", [annotation()])
    export = ["export", "--checkpoint", str(tmp_path / "none"), "--out", str(model)]
    browse = ["browse", "--data", data.root, "--out", str(pictures), "--num", "1"]
    browse += ["--set", "data.canvas=96,96", "data.large_scale_jitter=LargeScaleJitterConfig"]
    for command, file in ((export, model), (browse, pictures / "index.html"), (browse, pictures / "0007_3.png")):
        file.write_text("precious")
        before = files(tmp_path)
        assert main(command) == 2
        assert f"{file} is there already" in capsys.readouterr().err
        assert files(tmp_path) == before
        file.unlink()
    assert main(browse) == main(browse) == 0
