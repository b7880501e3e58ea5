"""Images and masks of few bytes and many pixels are left out of a conversion before they are decoded."""

import base64
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

from tests.data.convert.known import HEIGHT, WIDTH, block, convert, load, masks, write_image, write_json, write_mask


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that says it is so large, with hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.fixture(autouse=True)
def nothing_large_is_decoded(monkeypatch):
    prepare = ImageFile.ImageFile.load_prepare

    def watched(image: ImageFile.ImageFile) -> None:
        assert image.width * image.height <= WIDTH * HEIGHT, "was decoded"
        prepare(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", watched)


def labelme(root: Path, image: str | None, *shapes: dict) -> None:
    content = {"version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.png", "imageData": image}
    root.mkdir(exist_ok=True)
    (root / "a.json").write_text(json.dumps(content))


def shape(points: list[list[float]], kind: str = "polygon", **more) -> dict:
    return {"label": "a", "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


TRIANGLE = shape([[1, 1], [9, 1], [9, 9]])


@pytest.mark.parametrize("size", [(WIDTH + 1, HEIGHT), (19_000, 19_000), (60_000, 60_000)])
def test_masks_in_labelmes_files(tmp_path, capsys, size):
    write_image(tmp_path / "in" / "a.png")
    mask = base64.b64encode(png_header(*size, depth=1)).decode()
    labelme(tmp_path / "in", None, TRIANGLE, shape([[0, 0], [5, 5]], "mask", mask=mask))
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "1 shapes of type 'mask' with broken coordinates, left out" in capsys.readouterr().out
    assert len(load(tmp_path / "out").records[0].boxes) == 1


def test_masks_of_labelme_share_no_bitmaps(tmp_path):
    """Those of one group are one object, and each lies where its corner says."""
    write_image(tmp_path / "in" / "a.png")
    write_mask(tmp_path / "mask.png", np.full((4, 6), 255, np.uint8))
    mask = base64.b64encode((tmp_path / "mask.png").read_bytes()).decode()
    corners = [(2, 3), (20, 30), (-2, -1), (WIDTH - 3, HEIGHT - 2), (WIDTH + 9, 5)]
    shapes = [shape([[x, y], [x + 5, y + 3]], "mask", mask=mask, group_id=7) for x, y in corners]
    labelme(tmp_path / "in", None, *shapes)
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "out") == 0
    (found,) = masks(load(tmp_path / "out").records[0])
    expected = np.zeros((HEIGHT, WIDTH), bool)
    for x, y in corners:
        part = max(y, 0), max(x, 0), max(min(y + 4, HEIGHT), 0), max(min(x + 6, WIDTH), 0)
        expected |= block(*part)
    np.testing.assert_array_equal(found, expected)


def test_images_in_labelmes_files(tmp_path, capsys):
    labelme(tmp_path / "in", base64.b64encode(png_header(60_000, 60_000)).decode(), TRIANGLE)
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert "images that are too large to be decoded, left out" in capsys.readouterr().err


def test_images_and_id_masks(tmp_path, capsys):
    root = tmp_path / "in"
    for name in ("a", "b", "c"):
        write_image(root / "images" / f"{name}.png")
        write_mask(root / "masks" / f"{name}.png", block(2, 3, 9, 9).astype(np.uint8))
    (root / "masks" / "b.png").write_bytes(png_header(19_000, 19_000))
    (root / "images" / "c.png").write_bytes(png_header(60_000, 60_000))
    (root / "masks" / "c.png").write_bytes(png_header(60_000, 60_000))
    assert convert("id-masks", root, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "1 masks that are not of their image's size, left out" in said
    assert "1 images that are too large to be decoded, left out" in said
    assert len(load(tmp_path / "out").records) == 1


def test_pipes_are_left_out_and_not_waited_for(tmp_path, capsys):
    """Annotations name what they like as an image, and a folder may hold anything as annotations."""
    root, pipe = tmp_path / "in", tmp_path / "pipe.jpg"
    write_image(root / "images" / "a.jpg")
    os.mkfifo(pipe)
    (root / "images" / "b.jpg").symlink_to(pipe)

    names = ("a.jpg", "b.jpg", str(pipe), "/dev/zero")
    rectangle = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 9, "height": 9}}
    entries = {name: {"filename": name, "regions": [rectangle]} for name in names}
    via = write_json(root / "images" / "via.json", entries)
    assert convert("via", via, "--out", tmp_path / "via") == 0
    assert "3 images that cannot be read, left out" in capsys.readouterr().out

    (root / "labels").mkdir()
    os.mkfifo(root / "labels" / "a.txt")
    write_image(root / "images" / "c.jpg")
    (root / "labels" / "c.txt").write_text("0 .1 .1 .5 .1 .5 .5")
    (root / "train.txt").write_text(f"images/a.jpg\nimages/b.jpg\nimages/c.jpg\n{pipe}\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [thing]\n")
    assert convert("yolo", root, "--out", tmp_path / "yolo") == 0
    printed = capsys.readouterr().out
    assert "2 images that cannot be read, left out" in printed
    assert "1 files of labels that are not text, left out" in printed

    labelme(root / "labelme", None, TRIANGLE)
    write_image(root / "labelme" / "a.png")
    write_json(root / "labelme" / "c.json", {"shapes": [], "imagePath": "../images/b.jpg"})
    os.mkfifo(root / "labelme" / "d.json")
    assert convert("labelme", root / "labelme", "--out", tmp_path / "labelme") == 0
    printed = capsys.readouterr().out
    assert "1 images that do not exist, left out" in printed
    assert "1 files that cannot be read, left out" in printed
