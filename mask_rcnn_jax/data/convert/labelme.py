"""LabelMe: a JSON file for each image, with its shapes.

Polygons, rectangles, circles and masks become objects; shapes of one label and one `group_id` are parts of one object.
"""

import base64
import binascii
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mask_rcnn_jax.data.convert.json_files import read_object
from mask_rcnn_jax.data.convert.outlines import (
    Polygon,
    ellipse,
    instance_of_polygons,
    points,
    rectangle,
)
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
from mask_rcnn_jax.data.records.entries import file_name, is_unicode, shown
from mask_rcnn_jax.data.records.masks import to_rle
from mask_rcnn_jax.disk.files import is_file, is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, decode_upright, opened_image
from mask_rcnn_jax.rle import RLE, area_of, encode_bitmap, union_of

Part = Float[np.ndarray, "_ 2"] | RLE  # of one object, each of its own length

_SUFFIX_OF = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif", "WEBP": ".webp"}


def read_labelme(root: Path, classes: Sequence[str] | None = None) -> Source:
    """The annotated images of a folder and the folders in it, or of each of its folders train and val.

    `classes` are the labels to keep, in order; without it all are kept. Images that no JSON file speaks of are not
    converted: they may hold objects that nobody outlined yet. Raises UserError for a folder without JSON files.
    """
    if not is_folder(root):
        raise UserError(f"Folder {root} does not exist; name the folder with LabelMe's JSON files.")
    folders = split_folders(root) or {UNSPLIT: root}
    splits: dict[str, list[Task]] = {}
    for split, folder in folders.items():
        files = sorted(folder.rglob("*.json"))
        splits[split] = [Task(name_below(file, folder), partial(_picture, folder, file, classes)) for file in files]
    if not any(splits.values()):
        raise UserError(f"Folder {root} holds no JSON files; name the folder with LabelMe's annotations.")
    return Source(splits, None if classes is None else numbered(classes))


def _picture(root: Path, file: Path, classes: Sequence[str] | None) -> Picture:
    try:
        content = read_object(file)
    except ValueError as error:
        raise Unusable("files that cannot be read, left out", f"{file} ({error})") from None
    shapes = content.get("shapes")
    try:
        file_name(content, "imagePath")
    except ValueError:
        shapes = None
    if not isinstance(shapes, list):
        raise Unusable("JSON files that LabelMe did not write, left out", str(file))
    image_name, image = _image(root, file, content)
    height, width = picture_size(image, str(file))
    stated = content.get("imageHeight", height), content.get("imageWidth", width)
    if stated != (height, width) and None not in stated:
        raise Unusable(
            "images of another size than annotated, left out",
            f"{file}: annotated {shown(stated[1])} x {shown(stated[0])}, the image is {width} x {height}",
        )
    cases: list[Case] = []
    groups: dict[tuple[str, Any], list[Part]] = {}
    for index, shape in enumerate(shapes):
        where = f"{file}, shape {index}"
        try:
            label, part = _label(shape, classes), _part(shape, height, width)
        except ValueError as error:
            cases.append(Case(f"{error}, left out", where))
            continue
        group = shape.get("group_id")
        name = f"group {group if isinstance(group, str) else shown(group)}"
        groups.setdefault((label, f"shape {index}" if group is None else name), []).append(part)
    instances = []
    for (label, name), parts in groups.items():
        instance, lost = _instance(label, parts, height, width, f"{file}, {name}")
        cases += lost
        if instance is not None:
            instances.append(instance)
    return Picture(image_name, image, height, width, tuple(instances), tuple(cases))


def _image(root: Path, file: Path, content: dict[str, Any]) -> tuple[str, Path | bytes]:
    """The name and the file of the image, or what `imageData` holds of it where the file is not there."""
    path = file.parent / content["imagePath"].replace("\\", "/")
    for candidate in (path, file.parent / path.name):  # folders are often moved with their annotations
        if is_file(candidate):
            return name_below(candidate, root), candidate
    if not isinstance(content.get("imageData"), str):
        raise Unusable("images that do not exist, left out", f"{path}, named in {file}")
    try:
        data = base64.b64decode(content["imageData"])
        with opened_image(data) as image:
            suffix = _SUFFIX_OF.get(image.format or "")
    except (binascii.Error, *UNREADABLE) as error:
        raise Unusable("images that cannot be read, left out", f"imageData of {file} ({error})") from None
    return name_below(file.with_suffix(suffix or path.suffix), root), data


def _label(shape: Any, classes: Sequence[str] | None) -> str:
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise ValueError("shapes without a label")
    if not is_unicode(label):
        raise ValueError("shapes whose label holds half a character")
    if classes is not None and label.strip() not in classes:
        raise ValueError("objects of a class that --classes does not name")
    return label.strip()


def _part(shape: dict[str, Any], height: int, width: int) -> Part:
    """Return what a shape covers; ValueError names, in the plural, what covers nothing or is broken."""
    kind = shape.get("shape_type") or "polygon"  # the oldest files have no types
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        raise ValueError(f"shapes of type '{kind if isinstance(kind, str) else shown(kind)}', which outline nothing")
    try:
        corners = points(shape.get("points"))
        if not len(corners):
            raise ValueError("no corners")
        if kind == "rectangle":
            return rectangle(*corners.min(axis=0), *corners.max(axis=0))
        if kind == "circle":
            (x, y), (on_x, on_y) = corners.tolist()
            radius = math.hypot(on_x - x, on_y - y)
            return ellipse(x, y, radius, radius)
        return _bitmap(shape["mask"], corners, height, width) if kind == "mask" else corners
    except (KeyError, TypeError, ValueError, *UNREADABLE):
        raise ValueError(f"shapes of type '{kind}' with broken coordinates") from None


def _bitmap(encoded: str, corners: Polygon, height: int, width: int) -> RLE:
    """The mask of a shape of type "mask": a PNG that lies with its first pixel at the first corner.

    One of more pixels than its image is broken, and not decoded.
    """
    with opened_image(base64.b64decode(encoded)) as image:
        if image.width * image.height > width * height:
            raise ValueError("larger than its image")
        decode_upright("mask", image)
        patch = np.asarray(image.convert("L")) > 0
    x, y = np.floor(corners[0]).astype(int).tolist()
    top, left = max(-y, 0), max(-x, 0)
    patch = patch[top : max(height - y, 0), left : max(width - x, 0)]
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[y + top : y + top + patch.shape[0], x + left : x + left + patch.shape[1]] = patch
    # An image may have hundreds: only their runs are kept.
    return encode_bitmap(whole.view(bool))


def _instance(
    label: str, parts: Sequence[Part], height: int, width: int, where: str
) -> tuple[Instance | None, list[Case]]:
    """The object made of all parts: polygons while all of them are, else an RLE of their union."""
    covered: list[Any] = [part for part in parts if isinstance(part, dict)]
    outlined = [part for part in parts if not isinstance(part, dict)]
    if not covered:
        return instance_of_polygons(label, outlined, height, width, where)
    cases: list[Case] = []
    if outlined:
        instance, cases = instance_of_polygons(label, outlined, height, width, where)
        if instance is not None:
            covered.append(to_rle(instance.segmentation, height, width))
    union = union_of(covered)
    if not area_of(union):
        return None, [*cases, Case("objects that cover no pixel of their image, left out", where)]
    return Instance(label, union), cases
