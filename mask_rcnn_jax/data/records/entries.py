"""Typed readers of annotation files: whatever parses as JSON is of COCO's types afterwards, or refused in words.

Readers raise ValueError with what is wrong and what to do, as the rest of a sentence that begins with the entry's name:
"has no 'bbox'; add it". `refusal` makes that sentence, for those who know the file and the place.
"""

import json
import os
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mask_rcnn_jax.disk.files import open_file
from mask_rcnn_jax.errors import UserError

JsonObject = dict[str, Any]

LONGEST_SIDE = 2**24  # pixels: boxes are float32, which has all whole numbers up to here
MOST_PIXELS = 2**31 - 1  # of an image: run lengths are 32-bit

_LARGEST = 1e100  # of a number that measures something: products stay finite
_MISSING = object()
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlist, _SHORT.maxdict = 2, 80, 4, 4


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ValueError with the reason where there is none."""
    try:
        with open_file(path) as file:
            data = file.read()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    return parse_json(data)


def parse_json(data: bytes | str) -> Any:
    """Return what JSON text holds. Raises ValueError with the reason where it is none, or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # also bytes that are not UTF-8, and numbers of thousands of digits
        raise ValueError(f"it is not JSON: {error}") from None


def shown(value: Any) -> str:
    """Return a value of a JSON file for a message, cut where it is long or deeply nested."""
    return "null" if value is None else _SHORT.repr(value)


def refusal(kind: str, place: str, entry: Any, path: Path, problem: ValueError) -> UserError:
    """Return the error that names an entry: its id where it has one, and its place in the file `path`."""
    id_ = entry.get("id") if isinstance(entry, dict) else None
    name = f"{kind} {id_} ({place})" if isinstance(id_, int | str) and len(str(id_)) < 80 else f"{kind} {place}"
    return UserError(f"{name} in {path} {problem}.")


def check_object(entry: Any) -> JsonObject:
    """Return the entry if it is a JSON object."""
    if not isinstance(entry, dict):
        raise ValueError(f"is {shown(entry)}, not an object; correct or remove it")
    return entry


def value_of(entry: JsonObject, key: str) -> Any:
    """Return the value of a key that has to be there."""
    value = entry.get(key, _MISSING)
    if value is _MISSING:
        raise ValueError(f"has no '{key}'; add it")
    return value


def whole(entry: JsonObject, key: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """Return a whole number from `low` to `high`; 7.0, as some tools write it, is one."""
    value = value_of(entry, key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        hint = "; number the entries, and use these numbers wherever they are named" if key.endswith("id") else ""
        raise ValueError(f"has the {key} {shown(value)}, which is not a whole number{hint}")
    if not low <= value <= high:
        raise ValueError(f"has the {key} {shown(value)}, which is not from {low} to {high}; correct it")
    return value


def text(entry: JsonObject, key: str) -> str:
    """Return text that is not empty and can be printed."""
    value = value_of(entry, key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"has the {key} {shown(value)}, which is not text; correct it")
    if not is_unicode(value):
        raise ValueError(f"has the {key} {shown(value)}, which holds half a character; correct it")
    return value


def file_name(entry: JsonObject, key: str = "file_name") -> str:
    """Return text that can name a file; bytes that are not UTF-8 are escaped as Python does."""
    value = value_of(entry, key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"has the {key} {shown(value)}, which is not the name of a file; correct it")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError(f"has the {key} {shown(value)}, which is not the name of a file; correct it") from None
    return value


def is_unicode(value: str) -> bool:
    """Tell whether the text has no half of a surrogate pair, which JSON can hold and nothing can print."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any, largest: float = _LARGEST) -> TypeGuard[int | float]:
    """Tell whether a value is a finite number from -largest to largest, NumPy's too; true and false are none."""
    value = value.item() if isinstance(value, np.number) else value  # float32 would overflow in the comparison
    return type(value) in (int, float) and -largest <= value <= largest


def flag(entry: JsonObject, key: str) -> bool:
    """Return whether a number or truth value is set; it may be missing or null."""
    value = entry.get(key)
    if value is not None and type(value) is not bool and not is_number(value):
        raise ValueError(f"has the {key} {shown(value)}; write 0 or 1")
    return bool(value)


def list_of(entry: JsonObject, key: str) -> list[Any]:
    """Return a list."""
    value = value_of(entry, key)
    if not isinstance(value, list):
        raise ValueError(f"has the {key} {shown(value)}, which is not a list; correct it")
    return value


def check_category(entry: Any) -> tuple[int, str]:
    """Return the id and the name of an entry of COCO's "categories"; a name may be a number."""
    entry = check_object(entry)
    name = value_of(entry, "name")
    return whole(entry, "id"), str(name) if type(name) is int else text(entry, "name")


def check_size(entry: JsonObject) -> tuple[int, int]:
    """Return the (height, width) of an entry of COCO's "images"."""
    height, width = (whole(entry, key, 1, LONGEST_SIDE) for key in ("height", "width"))
    if height * width > MOST_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, more than {MOST_PIXELS}; correct it")
    return height, width


def check_image(entry: Any, name_key: str = "file_name") -> int:
    """Return the id of an entry of COCO's "images", whose file `name_key` names."""
    entry = check_object(entry)
    id_ = whole(entry, "id")
    file_name(entry, name_key)
    check_size(entry)
    return id_


def check_annotation(entry: Any, images: Collection[Any], categories: Mapping[Any, Any] | Collection[Any]) -> int:
    """Return the image id of an entry of COCO's "annotations", which `images` and `categories` must hold.

    Coordinates are not looked at: `AnnotationReader` leaves out what it cannot use.
    """
    entry = check_object(entry)
    whole(entry, "id")
    image_id, category_id = whole(entry, "image_id"), whole(entry, "category_id")
    if not isinstance(value_of(entry, "bbox"), list):
        raise ValueError(f"has the bbox {shown(entry['bbox'])}; write [x, y, width, height]")
    flag(entry, "iscrowd")
    if category_id not in categories:
        raise ValueError(f"has the unknown category_id {category_id}; add it to 'categories'")
    if image_id not in images:
        raise ValueError(f"has the unknown image_id {image_id}; add the image to 'images'")
    return image_id
