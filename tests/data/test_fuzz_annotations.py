"""Mutants of annotation files and of what they hold: each is read, or refused in a sentence."""

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import CocoConfig, load_coco
from mask_rcnn_jax.data.convert import Source, choose_splits, read_labelme, read_via, read_yolo, write_coco
from mask_rcnn_jax.data.convert.source import Unusable
from mask_rcnn_jax.data.lint import describe, lint
from mask_rcnn_jax.data.records.masks import bitmap, coverage, to_rle, visible_box
from mask_rcnn_jax.data.records.rasterise import polygon
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import SQUARE, annotation, write_dataset
from tests.json_mutants import mutants

HEIGHT, WIDTH = 12, 16
COUNTS = pytest.mark.parametrize(
    ("count", "seed"), [(300, 0), pytest.param(10_000, 1, marks=pytest.mark.slow, id="slow")]
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """The process's highest memory, which only grows, does so by less than a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


def attempt(read: Callable[[], object]) -> bool:
    """Whether `read` ends well; it may end in a sentence, and in nothing else."""
    try:
        read()
    except UserError:
        return False
    return True


COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (7, 3)],
    "annotations": [
        annotation(area=60.5, keypoints=[3, 3, 2, 0, 0, 0], num_keypoints=1),
        annotation(id=2, image_id=3, category_id=10, segmentation=[*SQUARE, [1, 1, 5, 1, 5, 9]]),
        annotation(id=3, segmentation={"size": [HEIGHT, WIDTH], "counts": [20, 5, 167]}, iscrowd=1, bbox=[1, 8, 2, 4]),
        annotation(id=4, segmentation={"size": [HEIGHT, WIDTH], "counts": "d05W5"}, bbox=[1, 8, 1, 4]),
    ],
    "categories": [
        {"id": 20, "name": "b", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]},
        {"id": 10, "name": "a"},
    ],
}


@COUNTS
def test_coco(tmp_path, count, seed):
    config = write_dataset(tmp_path, COCO["annotations"], COCO["images"], COCO["categories"])
    file = tmp_path / "annotations" / "instances_train.json"

    def read() -> None:
        dataset = load_coco(config, "train")
        "\n".join(dataset.describe_problems()).encode(errors="backslashreplace")
        for record in dataset.records:
            for segmentation, box in zip(record.segmentations, record.boxes, strict=True):
                coverage(segmentation, box, 8)
                visible_box(segmentation, box)
                to_rle(segmentation, record.height, record.width)

    usable = 0
    for mutant in mutants(COCO, count, seed):
        file.write_bytes(mutant)
        usable += attempt(read)
        report = lint(tmp_path, decode=False)
        json.dumps(report.to_json(), allow_nan=False)
        describe(report, None)
    assert count / 10 < usable < count


def square(**changes):
    return {"label": "a", "points": [[2, 2], [10, 2], [10, 10], [2, 10]], "shape_type": "polygon"} | changes


LABELME = {
    "shapes": [
        square(),
        square(shape_type="rectangle", points=[[1, 1], [5, 6]], group_id=1),
        square(shape_type="circle", points=[[5, 5], [5, 8]], group_id=1),
        square(
            shape_type="mask",
            points=[[1, 1], [3, 2]],
            mask="iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAAAAAC4HznGAAAADUlEQVR4nGP4DwMMKAwAmukL9QZqYMoAAAAASUVORK5CYII=",
        ),
    ],
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": HEIGHT,
    "imageWidth": WIDTH,
}
VIA = {
    "a.png1": {
        "filename": "a.png",
        "size": 1,
        "regions": [
            {"shape_attributes": shape, "region_attributes": {"kind": kind}}
            for shape, kind in (
                ({"name": "polygon", "all_points_x": [2, 9, 9], "all_points_y": [2, 2, 9]}, "cat"),
                ({"name": "rect", "x": 1, "y": 2, "width": 5, "height": 6}, {"cat": True}),
                ({"name": "circle", "cx": 5, "cy": 6, "r": 3}, "dog"),
                ({"name": "ellipse", "cx": 5, "cy": 6, "rx": 3, "ry": 2, "theta": 0.4}, "dog"),
            )
        ],
    },
    "b.png1": {"filename": "b.png", "size": 1, "regions": {}},
}
YOLO = {"path": ".", "train": "images", "val": ["images"], "names": {"0": "cat", "1": "dog"}, "nc": 2}
LINES = b"0 0.1 0.1 0.6 0.1 0.6 0.6\n1 0.5 0.5 0.2 0.2\n1 .2 .2 .9 .2 .9 .9 .2 .9\n"


def converts(out: Path, read: Callable[[], Source], written: bool) -> bool:
    """Whether an image can be used; where it is `written`, what was read is checked as a directory too."""

    def convert() -> None:
        source = choose_splits(read(), "train", None)
        if written:
            write_coco(source, out.parent, out, images="symlink", overwrite=True)
            load_coco(CocoConfig(str(out)), "train")
        for task in source.splits["train"]:
            with contextlib.suppress(Unusable):
                task.read()

    return attempt(convert)


@COUNTS
@pytest.mark.parametrize("tool", ["labelme", "via", "yolo"])
def test_converters(tmp_path, tool, count, seed):
    """YAML holds JSON, so that the settings of YOLO are mutated as the others."""
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    for image in ("a.png", "b.png", "images/a.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / image)
    (folder / "images" / "a.txt").write_bytes(LINES)
    trees = {"labelme": LABELME, "via": VIA, "yolo": YOLO}
    names = {"labelme": "a.json", "via": "via.json", "yolo": "data.yaml"}
    readers = {
        "labelme": lambda: read_labelme(folder),
        "via": lambda: read_via(folder, class_key="kind"),
        "yolo": lambda: read_yolo(folder, boxes="rectangle"),
    }
    usable, count = 0, count // 6 if tool == "yolo" else count  # PyYAML takes its time
    for number, mutant in enumerate(mutants(trees[tool], count, seed)):
        if tool == "yolo":  # no path leaves the folder: the machine's files are not to be walked
            mutant = mutant.replace(b"/", b"_").replace(b"..", b"_")
        (folder / names[tool]).write_bytes(mutant)
        usable += converts(tmp_path / "out", readers[tool], number % 10 == 0)
    assert count / 10 < usable < count


@COUNTS
def test_lines_of_yolo(tmp_path, count, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    (folder / "classes.txt").write_text("cat\ndog\n")
    words = [b"nan", b"inf", b"-1", b"1e400", b"0x1", b"2", b"0.5", b"\xff", b"\0", b"9" * 5000, b"\n", b"", b"1_0"]
    usable = 0
    for number in range(count):
        parts = LINES.split(b" ")
        for _ in range(rng.integers(1, 5)):
            parts[rng.integers(len(parts))] = words[rng.integers(len(words))]
        (folder / "a.txt").write_bytes(b" ".join(parts))
        usable += converts(tmp_path / "out", lambda: read_yolo(folder), number % 10 == 0)
    assert count / 10 < usable <= count


@COUNTS
def test_run_length_codes(count, seed):
    """What is let through covers its image, and pycocotools decodes it to as many pixels."""
    rng = np.random.default_rng(seed)
    usable = 0
    for _ in range(count):
        height, width = rng.integers(1, 40, 2).tolist()
        sound = coco_mask.encode(np.asfortranarray(rng.random((height, width)) < 0.3, np.uint8))["counts"]
        counts = bytearray(sound)
        for _ in range(rng.integers(0, 4)):
            at, code = rng.integers(len(counts)), rng.integers(48, 112) if rng.random() < 0.8 else rng.integers(256)
            counts[at : at + rng.integers(2)] = bytes([code])
        try:
            rle = to_rle({"size": [height, width], "counts": bytes(counts)}, height, width)
        except ValueError:
            continue
        usable += 1
        assert coco_mask.decode(rle).shape == (height, width)
    assert usable > count / 5


@COUNTS
def test_polygons(count, seed):
    rng = np.random.default_rng(seed)
    magnitudes = np.array([1, 10, 100, 1e4, 1e7, 1e8, 1e12, 1e300])
    for _ in range(count):
        height, width = rng.integers(1, 40, 2).tolist()
        corners = rng.normal(0, 1, (rng.integers(3, 8), 2)) * rng.choice(magnitudes, (1, 2)[rng.integers(2)])
        corners[rng.random(corners.shape) < 0.1] *= rng.choice(magnitudes[:4])
        outline = polygon(corners.tolist())
        assert coco_mask.decode(to_rle([outline], height, width)).shape == (height, width)
        bitmap([outline], np.array([0, 0, 1e-3, 5], np.float32), (28, 28))
