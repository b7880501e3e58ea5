"""A dataset in a format of your own: images beside PNGs whose pixels number the instances.

    mask-rcnn train --config examples/custom_data.py --workdir runs/custom --set data.source.root=DIR
    mask-rcnn eval --workdir runs/custom --plugin examples/custom_data.py

DIR holds the folders `train` and `val`, and each of them for every `NAME.jpg` a `NAME.png` of the same size: 0 is the
background, and the pixels of an instance have a number of their own, from 1. All are of one class.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.data import CocoDataset, SourceConfig, coco_dataset
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import Incidental
from mask_rcnn_jax.training import ExperimentConfig


@dataclass(frozen=True)
class NumberedMasks(SourceConfig):
    """Images and masks in `root/train` and `root/val`."""

    root: Annotated[str, Incidental()] = "data/cells"  # a run may go on with another: it says where, not what
    class_name: str = "cell"

    def load(self, split: str) -> CocoDataset:
        """Turn the masks into COCO's annotations, which are then checked as those of a file are."""
        folder = Path(self.root, split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, path in enumerate(sorted(folder.glob("*.jpg")), 1):
            mask = path.with_suffix(".png")
            if not mask.is_file():
                raise UserError(f"{path} has no mask; put it at {mask}")
            pixels = np.asarray(Image.open(mask))
            height, width = pixels.shape
            images.append({"id": number, "file_name": path.name, "height": height, "width": width})
            for value in np.unique(pixels[pixels > 0]).tolist():
                code: Any = coco_mask.encode(np.asfortranarray(pixels == value, np.uint8))
                box, area = coco_mask.toBbox(code).tolist(), float(coco_mask.area(code))
                outline = {"size": [height, width], "counts": code["counts"].decode()}
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotations.append(entry | {"segmentation": outline, "bbox": box, "area": area})
        categories = [{"id": 1, "name": self.class_name}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        return coco_dataset(content, name=folder, images=folder)


def get_config() -> ExperimentConfig:
    """The configuration `shapes`, on this data."""
    config = shapes.get_config()
    return replace(
        config,
        model=replace(config.model, num_classes=1),
        data=replace(config.data, source=NumberedMasks(), num_workers=2),
    )
