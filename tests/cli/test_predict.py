"""`mask-rcnn predict`: what it writes is what the predictor finds; what fails is named, and the rest is written."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.disk.output_folder import RECORD
from mask_rcnn_jax.inference import Predictor
from mask_rcnn_jax.inference.checkpoint import Metadata
from mask_rcnn_jax.media.inputs import find_images
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.checkpoint import Checkpoints
from mask_rcnn_jax.training.step import init_state
from tests.inference.small import CLASS_NAMES, DATA, noise, small_model

IDS = (4, 9, 2, 1, 5, 7)
BATCH = jax.device_count()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    model = small_model()
    config = ExperimentConfig(model=model.config, data=DATA)
    with Checkpoints(workdir, config, Metadata(CLASS_NAMES, IDS, licence="free")) as checkpoints:
        checkpoints.save(init_state(config, model.variables))
    return workdir


@pytest.fixture
def images(tmp_path) -> Path:
    """Three images, two of them of one name."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(noise(50, 70)).save(folder / "a.png")
    Image.fromarray(noise(70, 50, seed=1)).save(folder / "a.jpg")
    Image.fromarray(noise(64, 64, seed=2)).save(folder / "deep" / "b.png")
    return folder


def predict(checkpoint: Path, out: Path, *arguments: object, threshold: float = 0.01) -> int:
    options = ["--checkpoint", checkpoint, "--out", out, "--score-threshold", threshold, "--batch-size", BATCH]
    return main(["predict", *map(str, [*arguments, *options])])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files(folder: Path) -> list[str]:
    """The files below the folder, but for the record of what was written."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return sorted(found - {RECORD})


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_every_format_holds_what_was_found(checkpoint, images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    formats = ["overlay", "coco", "csv", "labels", "geojson", "cutouts"]
    assert predict(checkpoint, out, images, "--format", *formats) == 0
    paths = [images / "a.jpg", images / "a.png", images / "deep" / "b.png"]
    names = ["a_jpg", "a_png", "deep/b"]
    expected = Predictor.from_checkpoint(checkpoint, batch_size=BATCH)(paths)
    assert sum(map(len, expected)) > 10

    printed = capsys.readouterr().out
    assert f"{sum(map(len, expected))} instances in 3 images" in printed
    assert printed.startswith("licence of the weights: free\n")
    assert f"{BATCH} x 64 x 64" in printed
    assert str(out / "coco.json") in printed

    coco = COCO(out / "coco.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == [str(path) for path in paths]
    assert [(c["id"], c["name"]) for c in coco.dataset["categories"]] == list(zip(IDS, CLASS_NAMES, strict=True))
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    for number, (name, path, found) in enumerate(zip(names, paths, expected, strict=True), 1):
        annotations = coco.imgToAnns[number]
        results = found.to_coco(number, IDS)
        assert [{key: a[key] for key in r} for a, r in zip(annotations, results, strict=True)] == results
        areas = [int(coco_mask.area(a["segmentation"])) for a in annotations]
        assert [a["area"] for a in annotations] == areas
        mine = [row for row in rows if row["image"] == str(path)]
        assert [(row["class"], int(row["area"])) for row in mine] == list(zip(found.names, areas, strict=True))
        labels = pixels(out / "labels" / f"{name}.png")
        assert labels.shape == (found.height, found.width)
        np.testing.assert_array_equal(labels == 1, found.masks[0])
        np.testing.assert_array_equal(labels > 0, found.masks.any(axis=0))
        features = json.loads((out / "polygons" / f"{name}.geojson").read_text())["features"]
        assert len(features) == sum(area > 0 for area in areas) == len(list((out / "cutouts" / name).iterdir()))
    assert files(out / "overlays") == ["a_jpg.jpg", "a_png.png", "deep/b.png"]
    assert size_of(out / "overlays" / "a_png.png") == (490, 350)  # magnified to be seen


def test_overlays_alone_unless_asked_for_more(checkpoint, images, tmp_path) -> None:
    assert predict(checkpoint, tmp_path / "out", images / "deep" / "*.png") == 0
    assert files(tmp_path / "out") == ["overlays/b.png"]


def test_what_fails_is_named_and_the_rest_is_written(checkpoint, images, tmp_path, capsys) -> None:
    (images / "text.png").write_text("hello")
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    (out / "labels" / "a_jpg.png").mkdir(parents=True)  # cannot be written
    wrong = [tmp_path / "empty", tmp_path / "missing.png", tmp_path / "*.bmp"]
    assert predict(checkpoint, out, images, *wrong, "--format", "labels", "csv") == 1
    error = capsys.readouterr().err
    assert "failed: 6" in error
    parts = ["empty holds no image", "missing.png does not exist", "*.bmp matches no file"]
    parts += ["text.png cannot be read", "cut.png cannot be read", "a.jpg cannot be written"]
    for part in parts:
        assert part in error
    assert "Traceback" not in error
    assert files(out) == ["detections.csv", "labels/a_png.png", "labels/deep/b.png"]


def test_images_of_every_kind_come_back_in_their_size(checkpoint, tmp_path, capsys) -> None:
    folder = tmp_path / "kinds"
    folder.mkdir()
    image = Image.fromarray(noise(50, 70))
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(50, 70)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    frames = [image.convert("P"), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("P")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    image.convert("1").save(folder / "bits.tif")
    Image.new("RGB", (1, 1)).save(folder / "one.bmp")
    Image.new("LA", (300, 2)).save(folder / "thin.webp")
    out = tmp_path / "out"
    assert predict(checkpoint, out, folder, "--format", "labels") == 0
    assert "animated.gif has 2 frames; the first one is used" in capsys.readouterr().err
    sizes = {path.stem: size_of(path) for path in (out / "labels").iterdir()}
    size = (70, 50)
    kinds = {"cmyk": size, "deep": size, "animated": size, "bits": size, "one": (1, 1), "thin": (300, 2)}
    assert sizes == kinds


def test_images_above_the_limit_are_named(checkpoint, images, tmp_path, capsys) -> None:
    assert predict(checkpoint, tmp_path / "out", images, "--max-pixels", 4000, "--format", "csv") == 1
    error = capsys.readouterr().err
    assert "failed: 1" in error
    assert "b.png is 64 x 64 by its header" in error


def test_nothing_to_do_is_a_failure(checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(checkpoint, tmp_path / "out", tmp_path / "empty") == 1
    assert "holds no image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--out", "FILE"], "cannot be written"),
        (["--out", "FILE/below"], "cannot be written"),
        (["--checkpoint", "EMPTY"], "holds no checkpoints"),
    ],
)
def test_mistakes_on_the_command_line(checkpoint, images, tmp_path, capsys, arguments, part) -> None:
    (tmp_path / "FILE").write_text("")
    places = [str(tmp_path / a) if a[0].isupper() else a for a in arguments]
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), *places]
    assert main(["predict", str(images), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
    assert len(error.splitlines()) == 1


def test_an_unknown_format_is_refused(checkpoint, images, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        predict(checkpoint, tmp_path / "out", images, "--format", "docx")
    assert caught.value.code == 2
    assert "docx" in capsys.readouterr().err


def test_no_two_images_share_a_name(tmp_path) -> None:
    for name in ("x/a.png", "x/a.jpg", "y/a.png", "y/A.PNG", "y/a_png.png", "y/.hidden.png", "y/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    inputs = [tmp_path / "x", tmp_path / "y", tmp_path / "x/a.png", tmp_path / "*/a.*", tmp_path / "y/notes.txt"]
    found, problems = find_images([str(path) for path in inputs])
    assert not problems
    paths = [path.path.relative_to(tmp_path).as_posix() for path in found]
    assert paths == ["x/a.jpg", "x/a.png", "y/A.PNG", "y/a.png", "y/a_png.png", "y/notes.txt"]
    names = [image.name.casefold() for image in found]
    assert len(set(names)) == len(names)
    assert names[0] == "a_jpg"
    assert "notes" in names


def test_a_second_run_replaces_what_the_first_wrote_and_takes_none_of_it(checkpoint, images, capsys) -> None:
    out = images / "deep" / "out"
    for _ in range(2):
        assert predict(checkpoint, out, images, "--format", "overlay", "labels", "csv", "cutouts") == 0
        assert "in 3 images" in capsys.readouterr().out
    assert files(out / "labels") == ["a_jpg.png", "a_png.png", "deep/b.png"]
    (out / "labels" / "a_png.png").write_text("corrected by hand")
    # By hand, it is also an image of the folder again.
    assert predict(checkpoint, out, images / "*.*", "--format", "labels") == 2
    assert "a_png.png is there already" in capsys.readouterr().err
    assert (out / "labels" / "a_png.png").read_text() == "corrected by hand"
