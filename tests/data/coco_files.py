"""Tiny COCO directories for tests."""

import json

from PIL import Image

from mask_rcnn_jax.data import CocoConfig

SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]


def write_dataset(root, annotations, images=None, categories=None, split="train"):
    """A directory with two 16 x 12 images, ids 7 and 3, and categories 20 ("b") and 10 ("a")."""
    if images is None:
        images = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in (7, 3)]
    categories = categories or [{"id": 20, "name": "b"}, {"id": 10, "name": "a"}]
    (root / "annotations").mkdir(parents=True)
    (root / split).mkdir()
    for image in images:
        Image.new("RGB", (16, 12)).save(root / split / image.get("file_name", "x.png"))
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return CocoConfig(str(root))


def annotation(**changes):
    entry = {"id": 1, "image_id": 7, "category_id": 20, "bbox": [2, 2, 8, 8], "segmentation": SQUARE, "iscrowd": 0}
    return {key: value for key, value in (entry | changes).items() if value is not None}
