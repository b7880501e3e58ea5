"""A tiny directory in COCO's panoptic format: squares on sky and grass, which pixels tell by their colour."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mask_rcnn_jax.data import CocoConfig

HEIGHT, WIDTH = 48, 64
NAMES, IDS = ("grass", "sky"), (7, 10)  # of stuff, by ascending id
CATEGORIES = [
    {"id": 10, "name": "sky", "isthing": 0},
    {"id": 3, "name": "blue square", "isthing": 1},
    {"id": 7, "name": "grass", "isthing": 0},
    {"id": 1, "name": "red square", "isthing": 1},
]
# By kind: a thing, grass, sky, and what is not annotated.
COLOURS = {0: (0, 0, 0), 1: (0, 255, 0), 2: (255, 255, 255), 255: (128, 128, 128)}


def write_panoptic(root: Path, split: str = "train", count: int = 3, seed: int = 0) -> CocoConfig:
    """Write images of `HEIGHT` x `WIDTH` with two squares each, one a crowd in the first; the first row is void."""
    rng = np.random.default_rng(seed)
    folder = root / "annotations" / f"panoptic_{split}"
    folder.mkdir(parents=True)
    (root / f"panoptic_stuff_{split}").mkdir()
    (root / split).mkdir()
    images, instances, panoptic = [], [], []
    for number in range(count):
        kinds = np.where(np.arange(HEIGHT)[:, None] < rng.integers(16, 30), 2, 1) * np.ones((1, WIDTH), int)
        kinds[0] = 255
        numbers = np.select([kinds == 2, kinds == 1], [300, 70_000])
        segments = [{"id": 300, "category_id": 10}, {"id": 70_000, "category_id": 7}]
        for thing, x in enumerate((2, 34)):
            x, y, side = x + int(rng.integers(8)), int(rng.integers(4, 24)), int(rng.integers(10, 20))
            kinds[y : y + side, x : x + side] = 0
            numbers[y : y + side, x : x + side] = thing + 1
            entry = {"id": thing + 1, "category_id": (1, 3)[thing], "iscrowd": int(number == 0 and thing == 0)}
            segments.append(entry)
            outline = [x, y, x + side, y, x + side, y + side, x, y + side]
            of_instance = {"id": 2 * number + thing, "image_id": number, "bbox": [x, y, side, side], "area": side**2}
            instances.append(entry | of_instance | {"segmentation": [outline]})
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for kind, colour in COLOURS.items():
            image[kinds == kind] = colour
        image[numbers == 1], image[numbers == 2] = (200, 0, 0), (0, 0, 200)
        Image.fromarray(image).save(root / split / f"{number}.png")
        Image.fromarray(np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        Image.fromarray(kinds.astype(np.uint8)).save(root / f"panoptic_stuff_{split}" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
        panoptic.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    things = [{"id": each["id"], "name": each["name"]} for each in CATEGORIES if each["isthing"]]
    content = {"images": images, "annotations": instances, "categories": things}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    content = {"images": images, "annotations": panoptic, "categories": CATEGORIES}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return CocoConfig(str(root), train_split=split, val_split=split, panoptic_file="panoptic_{split}.json")
