"""Reads LVIS v1, where each image was searched for some classes only.

"Federated" annotations (Gupta et al. 2019, arXiv 1908.03195): of every class outside an image's annotations,
`neg_category_ids` are known to be absent, and nothing is known of the others; of those in
`not_exhaustive_category_ids` some instances are not annotated.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int

from mask_rcnn_jax.data.records import CocoDataset, Federated
from mask_rcnn_jax.data.records.annotations import AnnotationReader
from mask_rcnn_jax.data.records.entries import check_image, list_of, refusal, shown
from mask_rcnn_jax.data.records.packed import pack
from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.data.sources.coco import check_present, check_root, read_annotations
from mask_rcnn_jax.disk.files import is_file
from mask_rcnn_jax.ranges import Incidental

_CLASS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class LvisConfig(SourceConfig):
    """LVIS v1 in a directory beside COCO 2017's images: `root/train2017/`, `root/val2017/`.

    Annotations are `root/annotations/annotation_file` or `root/annotation_file`. Each image lies where its "coco_url"
    says: LVIS's val split is partly in train2017. As published, models of LVIS train with `repeat_threshold` 0.001 and
    give up to 300 detections of a score above 1e-4.
    """

    root: Annotated[str, Incidental()] = "data/coco"
    train_split: str = "train"
    val_split: str = "val"
    annotation_file: str = "lvis_v1_{split}.json"
    boxes_only: bool = False

    def load(self, split: str) -> CocoDataset:
        return load_lvis(self, split)


def load_lvis(config: LvisConfig, split: str) -> CocoDataset:
    """Reads `split`; the same errors and counts as `load_coco`."""
    root = check_root(config.root)
    name = config.annotation_file.replace("{split}", split)
    path = root / name if is_file(root / name) else root / "annotations" / name
    file = read_annotations(path, _check_image)
    for index, category in enumerate(file.categories):
        if category.get("frequency") not in ("r", "c", "f"):
            problem = ValueError("has no 'frequency' r, c or f, which LVIS has; export it in LVIS's format")
            raise refusal("Category", f"categories[{index}]", category, path, problem)
    images = {image_id: _image_path(root, entry) for image_id, entry in file.images.items()}
    check_present(path, images.values())
    reader = AnnotationReader(path, file.categories, config.boxes_only)
    frequency_of = {int(category["id"]): category["frequency"] for category in file.categories}

    def classes(ids: list[int]) -> Int[np.ndarray, " m"]:
        return np.array([reader.class_of[i] for i in ids if i in reader.class_of], np.int32)

    records = (
        reader.record(
            entry,
            images[int(entry["id"])],
            found,
            Federated(*(classes(entry[key]) for key in _CLASS_LISTS)),
        )
        for entry, found in file.taken()
    )
    return reader.dataset(pack(records), [frequency_of[category] for category in reader.categories])


def _check_image(entry: Any) -> int:
    """The id of an image's entry, as `check_image` has it."""
    id_ = check_image(entry, "coco_url")
    for key in _CLASS_LISTS:
        if not all(type(category) is int for category in list_of(entry, key)):
            raise ValueError(f"has the {key} {shown(entry[key])}, which are not all whole numbers; correct them")
    return id_


def _image_path(root: Path, entry: dict[str, Any]) -> Path:
    """Such as root/train2017/000000391895.jpg: the last folder and the name of the image's address."""
    return root.joinpath(*PurePosixPath(entry["coco_url"]).parts[-2:])
