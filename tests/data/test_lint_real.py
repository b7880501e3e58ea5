"""Lint on the real sets: what it reports was looked at, image by image, and is there."""

import os
from collections import Counter

import pytest

from mask_rcnn_jax.data.lint import lint
from tests.data.convert.known import write_json

# By set: images, objects and crowds of train and val (../shared/data/README.md), the most objects in an image (nuclei:
# the README's 375), and all findings, as (code, image or annotation file, annotation or category).
REAL = {
    "nuclei": (
        {"train": (466, 20783, 0), "val": (99, 3991, 0)},
        375,
        # A nucleus of which the image's last column shows 21 pixels.
        [("mask-thin", "val/a1777737270c5f96.png", 18904)],
    ),
    "coco_mini": (
        {"train": (439, 3645 - 33, 33), "val": (103, 866 - 7, 7)},
        51,
        [
            # The file has no annotation of these four of COCO's 80 classes.
            ("category-unused", "annotations/instances_val.json", 20),  # sheep
            ("category-unused", "annotations/instances_val.json", 24),  # zebra
            ("category-unused", "annotations/instances_val.json", 35),  # skis
            ("category-unused", "annotations/instances_val.json", 89),  # hair drier
            # A tennis ball and a traffic light, far away and outlined by points less than 2 pixels apart, and a strip
            # of a tie, 1.2 pixels wide, that a jacket leaves to be seen.
            ("mask-thin", "train/000000000531.jpg", 739),
            ("mask-thin", "train/000000000540.jpg", 774),
            ("mask-thin", "train/000000000542.jpg", 802),
        ],
    ),
    "coco_person_kp": ({"train": (240, 645, 13), "val": (115, 155, 0)}, 13, []),
    "balloon": ({"train": (61, 255, 0), "val": (13, 50, 0)}, 28, []),
}


# Nuclei are 24,774, which takes a quarter of a minute.
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "nuclei")) for name in REAL])
def test_real_sets(shared, name):
    splits, most, expected = REAL[name]
    report = lint(shared / "data" / name)
    assert {split: (c.images, c.objects, c.crowds) for split, c in report.splits.items()} == splits
    assert max(counts.objects_per_image_max for counts in report.splits.values()) == most
    ids = [f.category_id if f.annotation_id is None else f.annotation_id for f in report.findings]
    assert [(f.code, f.file, id_) for f, id_ in zip(report.findings, ids, strict=True)] == expected


def test_smaller_versions_of_photos_are_found(shared, tmp_path):
    """58 photos are in coco_mini and, at 480 pixels a side, in coco_person_kp: COCO's ids say which."""
    where = {}
    for split, name in (("train", "coco_mini"), ("val", "coco_person_kp")):
        (tmp_path / split).mkdir()
        where[split] = {path.name: path for path in (shared / "data" / name).glob("*/*.jpg")}
        images = []
        for number, (file, path) in enumerate(sorted(where[split].items()), 1):
            os.symlink(path, tmp_path / split / file)
            images.append({"id": number, "file_name": file, "width": 1, "height": 1})
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
        write_json(tmp_path / "annotations" / f"instances_{split}.json", content)
    both = where["train"].keys() & where["val"].keys()
    assert len(both) == 58
    report = lint(tmp_path)
    assert Counter(finding.code for finding in report.findings) == {
        "image-size": len(where["train"]) + len(where["val"]),
        "category-unused": 2,
        "split-near-leak": 58,
    }
    leaks = {f.file: f.message for f in report.findings if f.code == "split-near-leak"}
    assert leaks.keys() == {f"val/{file}" for file in both}
    assert all(f"train/{file.removeprefix('val/')} " in message for file, message in leaks.items())
