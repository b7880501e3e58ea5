"""Lint on datasets that were broken on purpose, one fault each: it finds that fault, where it is, and nothing else."""

import copy
import json
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data.lint import CHECKS, lint
from mask_rcnn_jax.data.lint import images as image_checks
from mask_rcnn_jax.data.lint.annotations import Split

HEIGHT, WIDTH = 48, 64
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
SPLITS = {"train": ("a.png", "b.jpg", "c.png"), "val": ("d.png", "e.jpg")}


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def rle(bitmap: np.ndarray) -> dict:
    return {
        "size": list(bitmap.shape),
        "counts": coco_mask.encode(np.asfortranarray(bitmap, np.uint8))["counts"].decode(),
    }


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    bitmap = np.zeros((HEIGHT, WIDTH), bool)
    bitmap[top:bottom, left:right] = True
    return bitmap


@dataclass
class Dataset:
    """A faultless directory: every image has a polygon of a cat, annotation 10 * image + 1, and an RLE of a dog, + 2"""

    root: Path
    contents: dict[str, dict]

    def write(self) -> None:
        (self.root / "annotations").mkdir(exist_ok=True)
        for split, content in self.contents.items():
            (self.root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))

    def image(self, image_id: int) -> dict:
        return next(
            image for content in self.contents.values() for image in content["images"] if image["id"] == image_id
        )

    def annotation(self, annotation_id: int) -> dict:
        listed = (entry for content in self.contents.values() for entry in content["annotations"])
        return next(entry for entry in listed if entry["id"] == annotation_id)

    def findings(self) -> list[tuple]:
        self.write()
        report = lint(self.root)
        assert report.count("error") + report.count("warning") == len(report.findings)
        return [(f.code, f.split, f.file, f.image_id, f.annotation_id, f.category_id) for f in report.findings]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    contents, image_id = {}, 0
    for split, names in SPLITS.items():
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for name in names:
            image_id += 1
            picture(image_id).save(tmp_path / split / name)
            images.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
            common = {"image_id": image_id, "iscrowd": 0}
            mask = rle(block(20, 40, 40, 60))
            cat = {"id": 10 * image_id + 1, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": [SQUARE]}
            dog = {"id": 10 * image_id + 2, "category_id": 2, "bbox": [40, 20, 20, 20], "segmentation": mask}
            annotations += [common | cat | {"area": 400}, common | dog | {"area": 400}]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        contents[split] = {"images": images, "annotations": annotations, "categories": categories}
    return Dataset(tmp_path, contents)


def test_a_faultless_dataset(dataset):
    assert dataset.findings() == []


def finding(code, file, image_id=None, annotation_id=None, category_id=None, split=None):
    return (code, split or ("val" if "val" in file else "train"), file, image_id, annotation_id, category_id)


def of_annotation(code, annotation_id=21):
    image_id, category = divmod(annotation_id, 10)
    files = [(split, name) for split, names in SPLITS.items() for name in names]
    return finding(code, "/".join(files[image_id - 1]), image_id, annotation_id, category)


CORNER = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 2, 2]}
FAULTS_OF_ANNOTATIONS = [
    ("box-empty", {"bbox": [10, 10, 0, 20]}),
    ("box-empty", {"bbox": [10, 10, 20, -20]}),
    ("box-empty", {"bbox": [70, 10, 20, 20]}),
    ("box-empty", {"bbox": [10, 10, 20]}),
    ("box-empty", {"bbox": [10, 10, 20, float("nan")]}),
    ("box-empty", {"bbox": [10, 10, 20, "20"]}),
    ("box-empty", {"bbox": None}),
    ("box-empty", {"bbox": [10, 10, 20, 10**400]}),
    ("box-empty", {"bbox": [10, 10, True, True]}),
    ("polygon-broken", {"segmentation": [[*SQUARE, 10, 10**400]]}),
    ("polygon-broken", {"segmentation": [[str(value) for value in SQUARE]]}),
    ("polygon-outside", {"segmentation": [[1e300, 10, 1e305, 10, 1e305, 30, 1e300, 30]]}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [2**62] * 4 + [HEIGHT * WIDTH]}}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": ["10", "20"]}}),
    ("keypoints-broken", {"keypoints": [10**400] * 3}),
    ("mask-missing", {"segmentation": []}),
    ("mask-missing", {"segmentation": None}),
    ("mask-missing", {"segmentation": "10 10 30 30"}),
    ("polygon-broken", {"segmentation": [[10, 10, 30, 30]]}),
    ("polygon-broken", {"segmentation": [SQUARE, []]}),
    ("polygon-broken", {"segmentation": [[*SQUARE, 10]]}),
    ("polygon-broken", {"segmentation": [[*SQUARE, 10, float("inf")]]}),
    ("polygon-broken", {"segmentation": [[*SQUARE, 10, None]]}),
    ("polygon-broken", {"segmentation": [[[10, 10], [30, 10], [30, 30], [10, 30]]]}),
    ("polygon-outside", {"segmentation": [[110, 10, 130, 10, 130, 30, 110, 30]]}),
    ("polygon-outside", {"segmentation": [[10, -30, 30, -30, 30, -10, 10, -10]]}),
    ("polygon-outside", {"segmentation": [SQUARE, [1e12, 1e12, 2e12, 1e12, 1e12, 2e12]]}),
    ("polygon-beyond", {"segmentation": [[44, 10, 67, 10, 67, 30, 44, 30]], "bbox": [44, 10, 20, 20]}),
    ("box-beyond", {"segmentation": [[44, 10, 64, 10, 64, 30, 44, 30]], "bbox": [44, 10, 23, 20]}),
    ("mask-empty", {"segmentation": [[10, 10, 30, 30, 20, 20]]}),
    ("mask-empty", {"segmentation": rle(block(0, 0, 0, 0))}),
    ("mask-empty", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}),
    ("rle-size", {"segmentation": rle(block(10, 10, 30, 30).T)}),
    ("rle-size", {"segmentation": {"counts": rle(block(10, 10, 30, 30))["counts"]}}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "no run lengths"}}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, 20, 30]}}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH]}}),
    ("rle-broken", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [[HEIGHT * WIDTH]]}}),
    ("box-elsewhere", {"bbox": [30, 10, 20, 20]}),
    ("box-elsewhere", {"bbox": [10, 10, 8, 20]}),
    ("box-loose", {"bbox": [10, 10, 24, 20]}),
    ("mask-thin", {"segmentation": [[10, 10, 30, 10, 30, 11, 10, 11]], "bbox": [10, 10, 20, 1]}),
    ("mask-thin", {"segmentation": rle(block(10, 10, 30, 11)), "bbox": [10, 10, 1, 20]}),
    ("mask-thin", {"segmentation": CORNER, "bbox": [63, 46, 1, 2]}),
    ("crowd-polygon", {"iscrowd": 1}),
    ("keypoints-broken", {"keypoints": [10, 10, 2]}),
]


@pytest.mark.parametrize(("code", "changes"), FAULTS_OF_ANNOTATIONS)
def test_faults_of_annotations(dataset, code, changes):
    dataset.annotation(21).update(changes)
    assert dataset.findings() == [of_annotation(code)]


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [8.1, 11.9, 21.9, 18.1]},  # within 2 pixels
        {
            "segmentation": [[-0.9, 10, 20, 10, 20, 30, -0.9, 30]],
            "bbox": [0, 10, 20, 20],
        },  # within a pixel of the image
        {"bbox": [4, 4, 52, 40], "segmentation": [[6.5, 5.9, 55, 5, 54, 43]]},  # within 5 %
        {"segmentation": rle(block(10, 10, 30, 30))},
        {"segmentation": rle(block(0, 0, HEIGHT, WIDTH)), "bbox": [0, 0, WIDTH, HEIGHT]},
        {
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 2, HEIGHT * (WIDTH - 2)]},
            "bbox": [0, 0, 2, 48],
        },
        {"segmentation": [SQUARE, [1, 1, 1.4, 1, 1.4, 1.4]], "bbox": [1, 1, 29, 29]},  # a part of no pixel
        {"segmentation": [[10, 10, 30, 30, 30, 10, 10, 30]]},  # crosses itself: halves that cancel
        {"iscrowd": 1, "segmentation": rle(block(10, 10, 30, 30))},
        {"area": None},
        {"area": 10**400},
    ],
)
def test_what_is_no_fault(dataset, changes):
    dataset.annotation(21).update(changes)
    assert dataset.findings() == []


@pytest.mark.parametrize(
    "bitmap",
    [np.random.default_rng(seed).random((HEIGHT, WIDTH)) < density for seed in range(4) for density in (0.001, 0.9)],
)
def test_extents_of_rles(dataset, bitmap):
    """The box that NumPy finds around the pixels fits, and one that is 3 pixels off does not."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    x, y, right, bottom = (int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    entry = dataset.annotation(21)
    entry.update(segmentation=rle(bitmap), bbox=[x, y, right - x, bottom - y])
    thin = min(right - x, bottom - y) < 2
    assert dataset.findings() == [of_annotation("mask-thin")] * thin
    entry["bbox"][2] += 3 if right + 3 <= WIDTH else -4
    if not thin and entry["bbox"][2] > 20:
        assert dataset.findings() == [of_annotation("box-loose")]


def test_faults_of_entries(dataset):
    """Each of these alone, on a fresh copy of the annotations."""
    train = "annotations/instances_train.json"
    whole = copy.deepcopy(dataset.contents)

    def check(change, *expected):
        dataset.contents = copy.deepcopy(whole)
        change(dataset.contents["train"])
        assert dataset.findings() == list(expected)

    def annotation(index):
        return lambda **changes: lambda c: c["annotations"][index].update(changes)

    third, images = annotation(2), ("train/a.png", "train/b.jpg", "train/c.png")
    check(third(image_id=77), finding("unknown-image", train, 77, 21, 1))
    check(third(category_id=7), finding("unknown-category", images[1], 2, 21, 7))
    check(third(id=11), finding("annotation-id-repeated", images[1], 2, 11, 1))
    check(third(id=None), finding("annotation-entry", train))
    check(third(image_id="2"), finding("annotation-entry", train, annotation_id=21))
    check(lambda c: c["annotations"][2].pop("bbox"), finding("annotation-entry", train, annotation_id=21))
    check(lambda c: c["annotations"].insert(0, 5), finding("annotation-entry", train))
    check(third(iscrowd="no"), finding("annotation-entry", train, annotation_id=21))
    copied = {**whole["train"]["annotations"][2], "id": 99}
    check(lambda c: c["annotations"].append(copied), finding("annotation-copied", images[1], 2, 99, 1))

    image = {"id": 3, "file_name": "c.png", "height": HEIGHT, "width": WIDTH}
    spoilt = [("height", 0), ("width", "64"), ("file_name", 5), ("height", 48.5), ("height", 48.0), ("width", 10**400)]
    for key, value in [*spoilt, ("file_name", "\0"), ("file_name", "\ud800")]:
        extra = image | {"id": 88, key: value}
        check(lambda c, extra=extra: c["images"].append(extra), finding("image-entry", train, 88))
    check(lambda c: c["images"].append(image | {"id": "x"}), finding("image-entry", train, "x"))
    check(lambda c: c["images"].append("c.png"), finding("image-entry", train))
    check(lambda c: c["images"][1].pop("width"), finding("image-entry", train, 2))
    check(lambda c: c["images"].append(image | {"id": 88}), finding("file-repeated", images[2], 88))
    picture(50).save(dataset.root / "train" / "extra.png")
    again = image | {"file_name": "extra.png"}
    check(lambda c: c["images"].append(again), finding("image-id-repeated", "train/extra.png", 3))
    check(lambda c: None, finding("image-unlisted", "train/extra.png"))
    (dataset.root / "train" / "extra.png").unlink()

    def category(**entry):
        return lambda c: c["categories"].append(entry)

    check(category(id=1, name="bird"), finding("category-id-repeated", train, category_id=1))
    check(category(name="bird"), finding("category-entry", train))
    check(category(id=3), finding("category-entry", train, category_id=3))
    keypoints = {"keypoints": ["nose", "nose"]}
    check(lambda c: c["categories"][0].update(keypoints), finding("category-entry", train))
    keypoints = {"keypoints": ["nose", "eye links", "eye rechts"]}
    check(lambda c: c["categories"][0].update(keypoints), finding("keypoint-flips", train))
    keypoints = {"keypoints": ["nose", "l_eye", "r_eye"]}
    check(lambda c: c["categories"][0].update(keypoints))


def test_faults_of_categories(dataset):
    whole = copy.deepcopy(dataset.contents)
    files = [f"annotations/instances_{split}.json" for split in ("train", "val")]
    for content in dataset.contents.values():
        content["categories"].append({"id": 3, "name": "bird"})
    assert dataset.findings() == [finding("category-unused", file, category_id=3) for file in files]
    for content in dataset.contents.values():
        content["categories"][2]["name"] = "dog"
        content["annotations"].append({**content["annotations"][0], "id": 98, "category_id": 3})
    assert dataset.findings() == [finding("category-name-repeated", file, category_id=3) for file in files]
    dataset.contents = copy.deepcopy(whole)
    dataset.contents["val"]["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert dataset.findings() == [finding("categories-differ", files[1], category_id=1)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"images": []}', '{"images": [], "annotations": 3, "categories": []}', "\xff", "[" * 100_000],
)
def test_faults_of_annotation_files(dataset, text):
    dataset.write()
    (dataset.root / "annotations" / "instances_train.json").write_text(text, encoding="latin-1")
    report = lint(dataset.root)
    assert [(f.code, f.split, f.file) for f in report.findings] == [
        ("annotation-file", "train", "annotations/instances_train.json")
    ]
    assert list(report.splits) == ["val"]


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> bytes:
    return path.read_bytes()[: path.stat().st_size * 2 // 3]


@pytest.mark.parametrize("name", SPLITS["train"])
@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("image-missing", None),
        ("image-broken", b""),
        ("image-broken", b"<html>404 not found</html>"),
        ("image-broken", truncated),
        ("image-huge", huge_png()),
    ],
)
def test_faults_of_files(dataset, name, code, content):
    path = dataset.root / "train" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path) if callable(content) else content)
    assert dataset.findings() == [finding(code, f"train/{name}", SPLITS["train"].index(name) + 1)]


def test_faults_of_sizes(dataset):
    picture(2, HEIGHT + 1).save(dataset.root / "train" / "b.jpg")
    assert dataset.findings() == [finding("image-size", "train/b.jpg", 2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2).save(dataset.root / "train" / "b.jpg", exif=exif)
    assert dataset.findings() == [finding("image-turned", "train/b.jpg", 2)]
    picture(2, WIDTH, HEIGHT).save(dataset.root / "train" / "b.jpg", exif=exif)
    assert dataset.findings() == []


def test_missing_folder(dataset):
    (dataset.root / "val").rename(dataset.root / "elsewhere")
    assert dataset.findings() == [finding("image-folder", "annotations/instances_val.json")]
    (dataset.root / "images").mkdir()
    (dataset.root / "elsewhere").rename(dataset.root / "images" / "val")
    assert dataset.findings() == []


def copies(dataset, target, change):
    """Writes `change` of a detailed picture, which is train/a.png, as `target`, and lints."""
    fine = np.random.default_rng(9).integers(0, 256, (24, 32, 3), np.uint8)
    original = Image.fromarray(fine).resize((640, 480), Image.Resampling.BICUBIC)
    original.save(dataset.root / "train" / "a.png")
    changed = change(original)
    changed.save(dataset.root / target, quality=60)
    for entry, size in (
        (dataset.image(1), original.size),
        (dataset.image(2 if "train" in target else 5), changed.size),
    ):
        entry.update(width=size[0], height=size[1])
    return dataset.findings()


def test_copies(dataset):
    for annotation_id in (12, 22, 42, 52):  # an RLE would have to change with the images' sizes
        dataset.annotation(annotation_id)["segmentation"] = [[40, 20, 60, 20, 60, 40, 40, 40]]

    def same(image):
        return image

    assert copies(dataset, "train/b.jpg", same) == [finding("image-near-copy", "train/b.jpg", 2)]
    picture(2).save(dataset.root / "train" / "b.jpg")
    dataset.image(2).update(width=WIDTH, height=HEIGHT)
    half = copies(dataset, "val/e.jpg", lambda image: image.resize((320, 240)))
    assert half == [finding("split-near-leak", "val/e.jpg", 5)]
    # A mirror image, a crop and another exposure's picture are other images.
    assert copies(dataset, "val/e.jpg", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == []
    assert copies(dataset, "val/e.jpg", lambda image: image.crop((0, 0, 560, 420))) == []
    # The same pixels in another file format, beside two files without any detail.
    dataset.image(4).update(width=640, height=480)
    Image.open(dataset.root / "train" / "a.png").save(dataset.root / "val" / "d.png", compress_level=1)
    assert dataset.findings() == [finding("split-leak", "val/d.png", 4)]
    picture(4).save(dataset.root / "val" / "d.png")
    dataset.image(4).update(width=WIDTH, height=HEIGHT)
    Image.new("RGB", (WIDTH, HEIGHT), (3, 3, 3)).save(dataset.root / "train" / "b.jpg")
    Image.new("RGB", (WIDTH, HEIGHT), (3, 4, 3)).save(dataset.root / "train" / "c.png")
    assert dataset.findings() == []
    Image.new("RGB", (WIDTH, HEIGHT), (3, 3, 3)).save(dataset.root / "train" / "c.png")
    assert dataset.findings() == [finding("image-copied", "train/c.png", 3)]


def test_every_check_is_tested():
    """All codes of the table occur above or need no dataset of their own."""
    text = Path(__file__).read_text()
    assert [code for code in CHECKS if f'"{code}"' not in text] == []


def test_counts(dataset):
    """By hand: sizes by COCO's limits of 32 and 96 pixels squared, crowds apart from objects."""
    train = dataset.contents["train"]
    train["annotations"][0].update(area=1024.0)
    train["annotations"][1].update(area=9216.0)
    train["annotations"][2].update(area=1023.9)
    train["annotations"][3].update(iscrowd=1)
    del train["annotations"][4:]
    dataset.write()
    counts = lint(dataset.root, ["train"]).splits["train"]
    assert (counts.images, counts.images_without_objects, counts.objects, counts.crowds) == (3, 1, 3, 1)
    assert (counts.small, counts.medium, counts.large) == (1, 1, 1)
    assert (counts.objects_per_image_mean, counts.objects_per_image_median, counts.objects_per_image_max) == (1, 1, 2)
    assert counts.fullest_image == "train/a.png"
    assert counts.smallest_image == counts.median_image == counts.largest_image == (HEIGHT, WIDTH)
    assert [(c.name, c.objects, c.images, c.crowds) for c in counts.classes] == [("cat", 2, 2, 0), ("dog", 1, 1, 1)]


def test_headers_alone(dataset):
    path = dataset.root / "train" / "b.jpg"
    path.write_bytes(truncated(path))
    (dataset.root / "val" / "d.png").write_bytes((dataset.root / "train" / "a.png").read_bytes())
    dataset.image(4)["height"] += 1
    dataset.annotation(42)["segmentation"] = [[40, 20, 60, 20, 60, 40, 40, 40]]
    dataset.write()
    assert [f.code for f in lint(dataset.root, decode=False).findings] == ["image-size"]
    assert [f.code for f in lint(dataset.root).findings] == ["image-broken", "image-size", "split-leak"]


def test_ctrl_c_does_not_wait_for_the_images_to_come(monkeypatch):
    looked, never = [], threading.Event()

    def inspect(root, split, path, decode):
        looked.append(path)
        if path == "train/0":
            raise KeyboardInterrupt  # comes out where the main thread waits for this image, as one of its own would
        never.wait(0.05)

    monkeypatch.setattr(image_checks, "_inspect", inspect)
    entries = [{"file_name": str(index)} for index in range(500 * (os.cpu_count() or 1))]
    with pytest.raises(KeyboardInterrupt):
        image_checks.check_images(Path(), [Split("train", "train.json", "train", entries)], decode=False)
    assert len(looked) < len(entries)
