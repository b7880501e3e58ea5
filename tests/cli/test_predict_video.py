"""`mask-rcnn predict` on videos, sequences, tiles and augmented images."""

import csv
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.cli.prediction import videos
from mask_rcnn_jax.cli.prediction.predict import _write_all
from mask_rcnn_jax.disk.output_folder import RECORD, OutputFolder
from mask_rcnn_jax.inference import Detections, Predictor
from mask_rcnn_jax.inference.augmented import AugmentationConfig
from mask_rcnn_jax.inference.checkpoint import Metadata, Model
from mask_rcnn_jax.media.inputs import InputImage
from mask_rcnn_jax.media.video import VideoReader, VideoWriter
from mask_rcnn_jax.models import MaskRCNNConfig
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.checkpoint import Checkpoints
from mask_rcnn_jax.training.step import init_state
from tests.inference.small import CLASS_NAMES, DATA, noise, small_model

pytest.importorskip("av", reason="needs PyAV, the extra `video`")
BATCH = jax.device_count()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    model = small_model()
    config = ExperimentConfig(model=model.config, data=DATA)
    with Checkpoints(workdir, config, Metadata(CLASS_NAMES, tuple(range(1, len(CLASS_NAMES) + 1)))) as checkpoints:
        checkpoints.save(init_state(config, model.variables))
    return workdir


def predict(checkpoint: Path, out: Path, *arguments: object) -> int:
    options = ["--checkpoint", checkpoint, "--out", out, "--score-threshold", 0.01]
    return main(["predict", *map(str, [*arguments, *options])])


def video(path: Path, count: int, seed: int = 0) -> Path:
    with VideoWriter(path, Fraction(12)) as writer:
        for i in range(count):
            writer.write(np.roll(noise(48, 64, seed=seed), 2 * i, axis=1))
    return path


def frames(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        read = list(reader.frames())
        assert reader.problem is None
    return read


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_video_becomes_a_video(checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "clips").mkdir()
    source = video(tmp_path / "clips" / "a.mp4", 9)
    Image.fromarray(noise(50, 60)).save(tmp_path / "clips" / "b.png")
    out = tmp_path / "out"
    assert predict(checkpoint, out, tmp_path / "clips", "--batch-size", BATCH) == 0
    assert "in 1 images" in capsys.readouterr().out
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        RECORD,
        "overlays/b.png",
        "videos/a.csv",
        "videos/a.mp4",
    ]
    with VideoReader(out / "videos" / "a.mp4") as reader:
        assert reader.rate == 12
    assert len(frames(out / "videos" / "a.mp4")) == 9

    expected = list(
        Predictor.from_checkpoint(checkpoint, batch_size=BATCH, score_threshold=0.01).stream(frames(source))
    )
    rows = table(out / "videos" / "a.csv")
    assert len(rows) == sum(map(len, expected)) > 9
    assert [int(row["frame"]) for row in rows] == [i for i, found in enumerate(expected) for _ in range(len(found))]
    np.testing.assert_allclose(
        [float(row["x2"]) for row in rows], np.concatenate([f.boxes[:, 2] for f in expected]), atol=0.01
    )
    in_first = {row["track"] for row in rows if row["frame"] == "0"}
    assert in_first == {str(k) for k in range(1, len(expected[0]) + 1)}


def test_half_a_video_is_written_and_said(checkpoint, tmp_path, capsys) -> None:
    whole = video(tmp_path / "whole.mp4", 60)
    content = whole.read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    assert predict(checkpoint, out, tmp_path / "half.mp4", tmp_path / "none.mp4", "--batch-size", BATCH) == 1
    error = capsys.readouterr().err
    count = len(frames(out / "videos" / "half.mp4"))
    assert 0 < count < 60
    assert f"half.mp4 breaks off after {count} of 60 frames" in error
    assert "none.mp4 cannot be read" in error
    assert not (out / "videos" / "none.mp4").exists()


def test_images_as_frames(checkpoint, tmp_path, capsys) -> None:
    folder = tmp_path / "walk"
    folder.mkdir()
    for i in (2, 10, 1):
        Image.fromarray(np.full((40, 60, 3), 20 * i, np.uint8)).save(folder / f"frame{i}.png")
    Image.fromarray(noise(50, 60)).save(folder / "frame11.png")
    (folder / "frame12.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert predict(checkpoint, out, folder, "--sequence", "--fps", "5", "--batch-size", BATCH) == 1
    error = capsys.readouterr().err
    assert "frame11.png has another size" in error
    assert "frame12.png cannot be read" in error
    with VideoReader(out / "videos" / "walk.mp4") as reader:
        assert reader.rate == 5
    levels = [int(np.median(frame)) for frame in frames(out / "videos" / "walk.mp4")]
    np.testing.assert_allclose(levels, [20, 40, 200], atol=40)
    assert np.argsort(levels).tolist() == [0, 1, 2]


def test_tiles_and_augmentation(checkpoint, tmp_path, capsys, monkeypatch) -> None:
    # Of the sizes that would be looked at, one, which compiles quickly.
    monkeypatch.setattr(
        "mask_rcnn_jax.cli.prediction.predict.AugmentationConfig", partial(AugmentationConfig, scales=(1.0,))
    )
    Image.fromarray(noise(100, 150)).save(tmp_path / "large.png")
    image = tmp_path / "large.png"
    assert predict(checkpoint, tmp_path / "plain", image, "--format", "csv", "--batch-size", BATCH) == 0
    assert predict(checkpoint, tmp_path / "tiled", image, "--format", "csv", "--tile", 64, "--batch-size", BATCH) == 0
    assert predict(checkpoint, tmp_path / "augmented", image, "--format", "csv", "--augment") == 0
    capsys.readouterr()
    rows = {name: table(tmp_path / name / "detections.csv") for name in ("plain", "tiled", "augmented")}
    assert len(rows["tiled"]) > len(rows["plain"])  # each tile may have as many as the model gives an image
    assert rows["augmented"] != rows["plain"]
    assert predict(checkpoint, tmp_path / "out", image, "--no-flip") == 2
    assert "give --augment" in capsys.readouterr().err
    assert predict(checkpoint, tmp_path / "out", image, "--overlap", 8) == 2
    assert "give --tile" in capsys.readouterr().err
    assert predict(checkpoint, tmp_path / "out", image, "--tile", 64, "--overlap", 64) == 2
    assert "cannot overlap by 64" in capsys.readouterr().err


def test_frames_of_too_many_pixels_are_refused(checkpoint, tmp_path, capsys) -> None:
    path = video(tmp_path / "a.mp4", 2)
    assert predict(checkpoint, tmp_path / "out", path, "--max-pixels", 48 * 64 - 1) == 1
    assert "a.mp4 has frames of 64 x 48, more than data.max_pixels 3071" in capsys.readouterr().err


def test_names_that_would_rule_the_terminal_are_escaped(tmp_path, monkeypatch, capsys) -> None:
    """A progress bar on a terminal has the name of its video; a note has that of an animated image."""
    monkeypatch.setattr(videos, "tqdm", lambda *given, **named: tqdm(*given, **named | {"disable": False}))
    monkeypatch.setattr(videos, "Tracker", lambda: SimpleNamespace(update=lambda found: np.zeros(0, int)))
    name = "\x1b[2Jclip"
    clip = SimpleNamespace(rate=Fraction(5), problem=None, stated_frames=2, frames=lambda: [noise(16, 16)] * 2)
    nothing = Detections.from_coco([], 16, 16, CLASS_NAMES)
    stub = SimpleNamespace(stream=lambda images: [nothing for _ in images])
    assert videos.predict_clip(stub, clip, name, OutputFolder(tmp_path), []) == (2, 0)

    animated = tmp_path / f"{name}.gif"
    image = Image.fromarray(noise(16, 16))
    image.save(animated, save_all=True, append_images=[image.rotate(90)])
    found = Detections.from_coco([], 16, 16, CLASS_NAMES, path=str(animated))
    model = Model(MaskRCNNConfig(), DATA, {}, CLASS_NAMES, (1,), 7)
    stub = SimpleNamespace(shapes=[], stream=lambda images, on_error: [found])
    assert _write_all(stub, model, [InputImage(animated, name)], [], []) == 0

    said = capsys.readouterr().err
    assert "\x1b[2J" not in said
    assert said.count("\\x1b[2Jclip") >= 2
