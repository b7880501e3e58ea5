"""Checks of an annotation file: its entries, their ids, and what they refer to."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask_rcnn_jax.data.augment.keypoint_flips import unpaired
from mask_rcnn_jax.data.lint.counts import SplitCounts, count_split
from mask_rcnn_jax.data.lint.findings import Finding
from mask_rcnn_jax.data.lint.geometry import check_annotation
from mask_rcnn_jax.data.records.entries import check_image, flag, is_number, is_unicode, read_json, shown
from mask_rcnn_jax.data.records.keypoints import category_keypoints, read_keypoints
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError


@dataclass
class Split:
    """The usable contents of an annotation file, and its defects."""

    name: str
    annotation_file: str  # below the dataset's folder
    folder: str = ""  # of the images, below the dataset's folder
    images: list[dict[str, Any]] = field(default_factory=list)  # usable entries, also of repeated ids
    files: set[str] = field(default_factory=set)  # names of all image files that are listed
    categories: dict[Any, str] = field(default_factory=dict)  # names by id, ascending
    counts: SplitCounts | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, message: str, file: str | None = None, **ids: Any) -> None:
        self.findings.append(Finding(code, message, self.name, file or self.annotation_file, **ids))

    def path(self, entry: dict[str, Any]) -> str:
        """The image file of an entry, below the dataset's folder."""
        return f"{self.folder}/{entry['file_name']}" if self.folder else str(entry["file_name"])


def read_split(root: Path, name: str, annotation_file: str) -> Split:
    """Reads and checks `root/annotation_file`, whose images are those of split `name`."""
    split = Split(name, annotation_file)
    content = _read(split, root / annotation_file)
    if content is None:
        return split
    folders = [folder for folder in (name, f"images/{name}") if is_folder(root / folder)]
    if folders:
        split.folder = folders[0]
    else:
        split.add("image-folder", f"folder {name} does not exist; put the images of the split there")
    _check_categories(split, content["categories"])
    by_id = _check_images(split, content["images"])
    _check_annotations(split, content["annotations"], by_id, _keypoint_number(split, content["categories"]))
    return split


def _read(split: Split, path: Path) -> dict[str, Any] | None:
    """The content of the annotation file, None where it cannot be used."""
    try:
        content = read_json(path)
    except ValueError as error:
        split.add("annotation-file", f"cannot be read: {error}")
        return None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            split.add("annotation-file", f"has no list '{key}'")
            return None
    if not content["images"]:
        split.add("annotation-file", "lists no images")
    return content


def _check_categories(split: Split, entries: list[Any]) -> None:
    found: dict[Any, str] = {}
    for entry in entries:
        id_, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not _is_id(id_) or not isinstance(name, str) or not is_unicode(name):
            split.add(
                "category-entry", f"category {shown(entry)} needs a number 'id' and a 'name'", category_id=_plain(id_)
            )
        elif id_ in found:
            split.add("category-id-repeated", f"category '{name}' has the id of '{found[id_]}'", category_id=id_)
        else:
            if name in found.values():
                split.add("category-name-repeated", f"category {id_} is called '{name}' as well", category_id=id_)
            found[id_] = name
    split.categories = dict(sorted(found.items()))


def _keypoint_number(split: Split, entries: list[Any]) -> int:
    usable = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    try:
        names = category_keypoints(Path(split.annotation_file), usable)[0]
    except UserError as error:
        split.add("category-entry", str(error))
        return 0
    for message in unpaired(names):
        split.add("keypoint-flips", message)
    return len(names)


def _check_images(split: Split, entries: list[Any]) -> dict[Any, dict[str, Any] | None]:
    """Entries by id, the first of each; None for ids whose entry cannot be used."""
    by_id: dict[Any, dict[str, Any] | None] = {}
    for entry in entries:
        problem = _image_problem(entry)
        if problem:
            id_ = entry.get("id") if isinstance(entry, dict) else None
            name = entry.get("file_name") if isinstance(entry, dict) else None
            split.files |= {name} if isinstance(name, str) else set()
            split.add("image-entry", f"the entry of image {shown(id_)} {problem}", image_id=_plain(id_))
            if _is_id(id_):
                by_id.setdefault(id_, None)
            continue
        id_, path = entry["id"], split.path(entry)
        if id_ in by_id:
            split.add("image-id-repeated", f"has the id {id_} of another image", path, image_id=id_)
        if entry["file_name"] in split.files:
            split.add("file-repeated", f"is listed again as image {id_}", path, image_id=id_)
        by_id.setdefault(id_, entry)
        split.files.add(entry["file_name"])
        split.images.append(entry)
    return by_id


def _image_problem(entry: Any) -> str | None:
    try:
        check_image(entry)
    except ValueError as error:
        return str(error)
    inexact = [key for key in ("id", "height", "width") if not _is_id(entry[key])]
    return f"has the {inexact[0]} {entry[inexact[0]]}, which other programs do not read" if inexact else None


def _check_annotations(
    split: Split, entries: list[Any], images: dict[Any, dict[str, Any] | None], num_keypoints: int
) -> None:
    seen: set[Any] = set()
    alike: dict[Hashable, list[dict[str, Any]]] = {}
    counted: list[tuple[Any, Any, bool, float | None]] = []
    for entry in entries:
        missing = [key for key in ("id", "image_id", "category_id", "bbox") if not _has(entry, key)]
        id_ = entry.get("id") if isinstance(entry, dict) else None
        ids: dict[str, Any] = {"annotation_id": _plain(id_)}
        if missing:
            split.add("annotation-entry", f"annotation {shown(id_)} has no usable '{missing[0]}'", **ids)
            continue
        try:
            is_crowd = flag(entry, "iscrowd")
        except ValueError as error:
            split.add("annotation-entry", f"annotation {id_} {error}", **ids)
            continue
        image_id, category_id = entry["image_id"], entry["category_id"]
        ids |= {"image_id": image_id, "category_id": category_id}
        image = images.get(image_id)
        file = split.path(image) if image else None
        if id_ in seen:
            split.add("annotation-id-repeated", f"annotation {id_} occurs again", file, **ids)
        seen.add(id_)
        if image_id not in images:
            split.add("unknown-image", f"annotation {id_} is of image {image_id}, which is not listed", **ids)
        if category_id not in split.categories:
            message = f"annotation {id_} is of category {category_id}, which is not listed"
            split.add("unknown-category", message, file, **ids)
        if image is None or category_id not in split.categories:
            continue
        problems, area = check_annotation(entry, image["height"], image["width"])
        problems += _check_keypoints(entry, num_keypoints)
        if area is not None:
            problems += _check_copies(entry, alike)
        for code, message in problems:
            split.add(code, f"annotation {id_} {message}", file, **ids)
        stated = entry.get("area")
        area = float(stated) if is_number(stated) else area
        counted.append((image_id, category_id, is_crowd, area))
    _count(split, images, counted)


def _count(
    split: Split, images: dict[Any, dict[str, Any] | None], annotations: list[tuple[Any, Any, bool, float | None]]
) -> None:
    files = {id_: split.path(entry) for id_, entry in images.items() if entry}
    sizes = [(entry["height"], entry["width"]) for entry in split.images]
    split.counts = count_split(files, sizes, split.categories, annotations)
    for category in split.counts.classes:
        if not category.objects:
            message = f"category {category.id} '{category.name}' has no objects"
            split.add("category-unused", message, category_id=category.id)


def _check_keypoints(annotation: dict[str, Any], num_keypoints: int) -> list[tuple[str, str]]:
    if not annotation.get("keypoints"):
        return []
    if not num_keypoints:
        return [("keypoints-broken", "has keypoints, which its category does not name")]
    try:
        read_keypoints(annotation["keypoints"], num_keypoints)
    except ValueError as error:
        return [("keypoints-broken", f"has keypoints that cannot be used: {error}")]
    return []


def _check_copies(annotation: dict[str, Any], alike: dict[Hashable, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Find an earlier annotation of the image, in `alike`, with the same category, box and mask, which is whole."""
    key = (annotation["image_id"], annotation["category_id"], shown(annotation["bbox"]))
    earlier = alike.setdefault(key, [])
    mask = _outline(annotation)
    copied = next((other for other in earlier if _outline(other) == mask), None)
    earlier.append(annotation)
    if copied is None or copied["id"] == annotation["id"]:
        return []
    return [("annotation-copied", f"repeats annotation {copied['id']}")]


def _outline(annotation: dict[str, Any]) -> Any:
    mask = annotation["segmentation"]
    return mask["counts"] if isinstance(mask, dict) else mask


def _has(entry: Any, key: str) -> bool:
    if not isinstance(entry, dict) or key not in entry:
        return False
    return key == "bbox" or _is_id(entry[key])


def _is_id(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _plain(value: Any) -> Any:
    """An id that is none, as it can be reported."""
    return value if isinstance(value, str | int) else None
