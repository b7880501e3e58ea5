"""Reads a COCO-style directory into records, and says what it could not use."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_rcnn_jax.data.annotations import AnnotationReader
from mask_rcnn_jax.data.config import CocoConfig, ShapesConfig
from mask_rcnn_jax.data.packed import pack
from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.shapes import check_shapes
from mask_rcnn_jax.errors import UserError

__all__ = [
    "AnnotationFile",
    "CocoDataset",
    "Record",
    "check_present",
    "image_directory",
    "load_coco",
    "read_annotations",
]

_IMAGE_KEYS = ("id", "file_name", "height", "width")


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """An annotation file as JSON has it, where images, annotations and categories name each other rightly."""

    path: Path
    categories: list[dict[str, Any]]
    images: dict[int, dict[str, Any]]  # by id, in the file's order
    annotations: dict[int, list[dict[str, Any]]]  # by image id, for every image

    def taken(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each image's entry and its annotations, which are then let go: COCO's are gigabytes as Python objects."""
        for image_id, entry in self.images.items():
            yield entry, self.annotations.pop(image_id)


def load_coco(config: CocoConfig | ShapesConfig, split: str) -> CocoDataset:
    """Reads `split` of the directory; that of a `ShapesConfig` must have been written, see `prepare_source`.

    Raises `UserError` for a missing directory or image, an annotation file that is missing, not JSON or lacks keys, and
    annotations that name an unknown image or category. Left out and counted: boxes of no area, polygons with fewer than
    three points or an odd number of coordinates, RLEs that are broken or empty. Images without annotations are kept
    (training drops them, see `DataConfig.keep_empty`) and counted. Instances of unusable keypoints are kept without
    them, and counted.
    """
    if isinstance(config, ShapesConfig):
        check_shapes(config)
        config = CocoConfig(config.root)
    root = check_root(config.root)
    file = read_annotations(root / "annotations" / config.annotation_file.replace("{split}", split))
    directory = image_directory(root, split)
    check_present(file.path, (directory / entry["file_name"] for entry in file.images.values()))
    reader = AnnotationReader(file.path, file.categories, config.boxes_only)
    records = (reader.record(entry, directory / entry["file_name"], found) for entry, found in file.taken())
    return reader.dataset(pack(records))


def check_root(root: str | Path) -> Path:
    """The directory of a source; `UserError` where it does not exist."""
    if not Path(root).is_dir():
        raise UserError(f"Data directory {root} does not exist; set data.source.root to a COCO-style directory.")
    return Path(root)


def read_annotations(path: Path, image_keys: Iterable[str] = _IMAGE_KEYS) -> AnnotationFile:
    """The annotation file `path`, whose images must have `image_keys`; `UserError` where it cannot be used."""
    content = _read_json(path)
    categories = content["categories"]
    for category in categories:
        if "id" not in category or "name" not in category:
            raise UserError(f"Category {category} in {path} needs an 'id' and a 'name'; add them.")
    known = {category["id"] for category in categories}
    if len(known) != len(categories):
        raise UserError(f"A category id occurs twice in {path}; make the ids unique.")
    images = _images_by_id(path, content["images"], image_keys)
    annotations: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for annotation in content["annotations"]:
        _check_annotation(path, annotation, images, known)
        annotations[annotation["image_id"]].append(annotation)
    return AnnotationFile(path, categories, images, annotations)


def image_directory(root: Path, split: str) -> Path:
    """The folder of the split's images; `UserError` where there is none."""
    for directory in (root / split, root / "images" / split):
        if directory.is_dir():
            return directory
    raise UserError(f"Image directory {root / split} does not exist; put the images of split '{split}' there.")


def check_present(annotation_file: Path, images: Iterable[Path]) -> None:
    """Raises `UserError` where image files are missing."""
    missing = [path for path in images if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more images do" if len(missing) > 1 else " does"
        raise UserError(f"Image {missing[0]}{more} not exist; restore it or remove it from {annotation_file}.")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"Annotation file {path} does not exist; put the annotations there or name another split.")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Annotation file {path} is not JSON ({error}); export it again.") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"Annotation file {path} has no list '{key}'; export it in COCO's instances format.")
    return content


def _images_by_id(path: Path, images: list[dict[str, Any]], keys: Iterable[str]) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for entry in images:
        for key in keys:
            if key not in entry:
                raise UserError(f"Image {entry.get('id', entry)} in {path} has no '{key}'; add it.")
        if entry["id"] in entries:
            raise UserError(f"Image id {entry['id']} occurs twice in {path}; make the ids unique.")
        entries[entry["id"]] = entry
    if not entries:
        raise UserError(f"Annotation file {path} lists no images; name another split or export it again.")
    return entries


def _check_annotation(path: Path, annotation: dict[str, Any], images: Mapping[int, Any], categories: set[int]) -> None:
    name = f"Annotation {annotation.get('id', annotation)} in {path}"
    for key in ("id", "image_id", "category_id", "bbox"):
        if key not in annotation:
            raise UserError(f"{name} has no '{key}'; add it.")
    if annotation["category_id"] not in categories:
        raise UserError(f"{name} has the unknown category_id {annotation['category_id']}; add it to 'categories'.")
    if annotation["image_id"] not in images:
        raise UserError(f"{name} has the unknown image_id {annotation['image_id']}; add the image to 'images'.")
