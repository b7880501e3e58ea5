"""VGG Image Annotator 1 and 2: an exported JSON or a saved project, beside the images or away from them.

Regions are polygons, rectangles, circles and ellipses; an attribute of the regions names their class.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mask_rcnn_jax.data.convert.json_files import one_json_file, read_object
from mask_rcnn_jax.data.convert.outlines import Polygon, ellipse, instance_of_polygons, points, rectangle
from mask_rcnn_jax.data.convert.pictures import name_below, picture_size
from mask_rcnn_jax.data.convert.source import (
    UNSPLIT,
    Case,
    Instance,
    Picture,
    Source,
    Task,
    Unusable,
    numbered,
    split_folders,
)
from mask_rcnn_jax.data.records.entries import file_name, is_number, is_unicode, shown
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError


def read_via(
    path: Path,
    class_key: str | None = None,
    class_name: str = "object",
    classes: Sequence[str] | None = None,
    images: Path | None = None,
) -> Source:
    """The images of a JSON file, or of the one JSON file in a folder or in each of its folders train and val.

    `class_key` is the region attribute that names the class; without it, the only attribute that the regions have. Of
    regions without attributes all are `class_name`. `classes` are the classes to keep, in order. `images` is the
    folder of the images if they are not beside the JSON file. Raises UserError for other files, and where several
    attributes leave the choice open.
    """
    folders = split_folders(path) if is_folder(path) else {}
    if folders:
        files = {name: one_json_file(folder) for name, folder in folders.items()}
    else:
        files = {UNSPLIT: one_json_file(path) if is_folder(path) else path}
    entries = {name: _entries(file) for name, file in files.items()}
    key = _class_key(path, [entry for of_split in entries.values() for entry in of_split], class_key)
    reader = _Reader(key, class_name, classes)
    splits = {
        name: [
            Task(_name(entry), partial(reader.picture, files[name], images or files[name].parent, entry))
            for entry in of_split
        ]
        for name, of_split in entries.items()
    }
    if classes is not None:
        return Source(splits, numbered(classes))
    return Source(splits, None if key else numbered([class_name]))


def _entries(file: Path) -> list[dict[str, Any]]:
    """One dict for each image of the file."""
    try:
        content = read_object(file)
    except ValueError as error:
        raise UserError(f"Annotation file {file} cannot be read ({error}); export it again.") from None
    if {"project", "metadata", "view"} <= content.keys():
        raise UserError(f"Annotation file {file} is of VIA 3; export it from VIA 2, or in COCO's format.")
    content = content.get("_via_img_metadata", content)
    entries = list(content.values()) if isinstance(content, dict) else []
    if not entries or not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise UserError(
            f"Annotation file {file} is no export or project of VIA 1 or 2; export the annotations as JSON."
        )
    return entries


def _name(entry: dict[str, Any]) -> str:
    """The name of an entry's image, shortened where it is none."""
    return entry["filename"] if isinstance(entry["filename"], str) else shown(entry["filename"])


def _regions(entry: dict[str, Any]) -> list[Any]:
    """The regions of an image: VIA 1 numbers them in an object, VIA 2 lists them."""
    regions = entry.get("regions") or []
    if isinstance(regions, dict):
        return list(regions.values())
    return regions if isinstance(regions, list) else [regions]


def _attributes(region: Any) -> dict[str, Any]:
    attributes = region.get("region_attributes") if isinstance(region, dict) else None
    return attributes if isinstance(attributes, dict) else {}


def _class_key(path: Path, entries: list[dict[str, Any]], asked: str | None) -> str | None:
    """The attribute that names the class, None where there is none."""
    keys = sorted({key for entry in entries for region in _regions(entry) for key in _attributes(region)})
    if asked is not None and asked not in keys:
        have = f"only {', '.join(keys)}" if keys else "no attributes"
        raise UserError(f"No region of {path} has the attribute '{asked}': they have {have}; correct --class-key.")
    if asked is None and len(keys) > 1:
        raise UserError(f"The regions of {path} have the attributes {', '.join(keys)}; say which with --class-key.")
    return asked or (keys[0] if keys else None)


class _Reader:
    """The conventions of one source's regions."""

    def __init__(self, class_key: str | None, class_name: str, classes: Sequence[str] | None):
        self.class_key = class_key
        self.class_name = class_name
        self.classes = classes

    def picture(self, file: Path, folder: Path, entry: dict[str, Any]) -> Picture:
        try:
            name = file_name(entry, "filename")
        except ValueError as error:
            raise Unusable("entries without the name of an image, left out", f"{file}: an entry {error}") from None
        if name.startswith(("http://", "https://")):
            raise Unusable("images that are addresses and not files, left out", f"{file}: {name}")
        image = folder / name
        height, width = picture_size(image, str(image))
        instances: list[Instance] = []
        cases: list[Case] = []
        for index, region in enumerate(_regions(entry)):
            where = f"{file}, image {name}, region {index}"
            try:
                if not isinstance(region, dict):
                    raise ValueError("regions that are no objects")
                category, outline = self._category(region), _outline(region.get("shape_attributes"))
            except ValueError as error:
                cases.append(Case(f"{error}, left out", where))
                continue
            instance, lost = instance_of_polygons(category, [outline], height, width, where)
            cases += lost
            if instance is not None:
                instances.append(instance)
        return Picture(name_below(image, folder), image, height, width, tuple(instances), tuple(cases))

    def _category(self, region: dict[str, Any]) -> str:
        if self.class_key is None:
            return self.class_name
        value = _attributes(region).get(self.class_key)
        if isinstance(value, dict):  # of checkboxes: a flag for each that was ticked
            ticked = [name for name, flag in value.items() if flag]
            if len(ticked) > 1:
                raise ValueError(f"regions with several classes in '{self.class_key}'")
            value = ticked[0] if ticked else None
        name = str(value).strip() if isinstance(value, str) or is_number(value) else ""
        if not name or not is_unicode(name):
            raise ValueError(f"regions without a class in '{self.class_key}'")
        if self.classes is not None and name not in self.classes:
            raise ValueError("objects of a class that --classes does not name")
        return name


def _outline(shape: Any) -> Polygon:
    """The outline of a region; ValueError names, in the plural, what has none."""
    kind = shape.get("name") if isinstance(shape, dict) else None
    try:
        if kind == "polygon":
            xs, ys = shape["all_points_x"], shape["all_points_y"]
            if not isinstance(xs, list) or not isinstance(ys, list):
                raise TypeError
            return points(list(zip(xs, ys, strict=True)))
        if kind == "rect":
            x, y, width, height = points([[shape["x"], shape["y"]], [shape["width"], shape["height"]]]).ravel().tolist()
            return rectangle(x, y, x + width, y + height)
        if kind == "circle":
            (x, y), (radius, _) = points([[shape["cx"], shape["cy"]], [shape["r"], 0]]).tolist()
            return ellipse(x, y, radius, radius)
        if kind == "ellipse":
            numbers = [[shape["cx"], shape["cy"]], [shape["rx"], shape["ry"]], [shape.get("theta", 0), 0]]
            x, y, radius_x, radius_y, turn, _ = points(numbers).ravel().tolist()
            return ellipse(x, y, radius_x, radius_y, turn)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"regions of shape '{kind}' with broken coordinates") from None
    named = kind if isinstance(kind, str) else shown(kind)
    raise ValueError(f"regions of shape '{named}', which outline nothing")
