"""YOLO segmentation: a text file for each image, `class x1 y1 x2 y2 ...` a line, in shares of the image's sides.

Splits and classes come from a `data.yaml`; without one, images lie in `images/SPLIT`, `images` or beside their labels,
and classes in `classes.txt`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mask_rcnn_jax.data.convert.json_files import read_lines
from mask_rcnn_jax.data.convert.outlines import Polygon, instance_of_polygons, rectangle
from mask_rcnn_jax.data.convert.pictures import name_below, picture_size
from mask_rcnn_jax.data.convert.source import UNSPLIT, Case, Instance, Picture, Source, Task, numbered, split_folders
from mask_rcnn_jax.data.records.entries import is_unicode, shown
from mask_rcnn_jax.disk.files import exists, is_file, is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.media.image_files import IMAGE_SUFFIXES, list_images

Boxes = Literal["refuse", "rectangle"]

_CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
_EMPTY = (None, "", "~", "null", "Null", "NULL")  # what YAML has for nothing
_FARTHEST = 2.0  # sides of the image: coordinates beyond are not shares of a side


def read_yolo(path: Path, classes: Sequence[str] | None = None, boxes: Boxes = "refuse") -> Source:
    """The images of a `data.yaml`, or of a folder, with one or without.

    Images without a text file have no objects. Lines that hold only a box are left out and counted, or become
    rectangles. `classes` are the names in the order of their numbers, in place of those of the files. Raises UserError
    for a folder that is laid out in another way, and for poses.
    """
    settings = _settings(path)
    root = path.parent if settings is not None and is_file(path) else path
    if settings is None:
        names = list(classes or _listed_classes(root))
        images = {split: _listed(folder) for split, folder in _image_folders(root).items()}
        image_root = root
    else:
        if "kpt_shape" in settings:
            raise UserError(f"{path} describes poses (kpt_shape), whose lines hold no outlines; convert segmentations.")
        names = list(classes or _named_classes(settings))
        image_root = root / _text(settings, "path")
        if not is_folder(image_root):  # `path` is often that of the machine where the file was made
            image_root = root
        images = {
            split: _images(image_root, settings[key])
            for key, split in (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test"))
            if settings.get(key) not in _EMPTY
        }
    if not any(images.values()):
        raise UserError(f"No images were found for {path}; it must name or hold folders of images.")
    reader = _Reader(names, boxes)
    splits = {
        split: [Task(name, partial(reader.picture, name, file)) for name, file in _named(image_root, files)]
        for split, files in images.items()
        if files
    }
    return Source(splits, numbered(names))


def _settings(path: Path) -> dict[Any, Any] | None:
    """The content of the YAML file at `path` or in the folder `path`, None for a folder without one."""
    if is_folder(path):
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if len(found) > 1:
            raise UserError(f"Folder {path} holds {len(found)} YAML files; name the one that describes the data.")
        if not found:
            return None
        path = found[0]
    require("yolo", f"reading {path}")
    import yaml

    try:
        # All values stay text: a class called "no" is not False, one called "1.0" no number.
        content = yaml.load("\n".join(read_lines(path)), yaml.BaseLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({error}); name a data.yaml or the folder of one.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; it needs train, val and names.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a data.yaml; it needs train, val and names.")
    return content


def _text(settings: dict[Any, Any], key: str) -> str:
    """The text of a key, "" where it has none."""
    value = settings.get(key)
    if value in _EMPTY:
        return ""
    if not isinstance(value, str):
        raise UserError(f"The data.yaml has the {key} {shown(value)}; write a folder.")
    return value


def _named_classes(settings: dict[Any, Any]) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]  # None where the numbers have a gap
    found = names if isinstance(names, list) else []
    usable = [name for name in found if isinstance(name, str) and name and is_unicode(name)]
    if not usable or len(usable) < len(found):
        raise UserError("The data.yaml has no 'names' for classes 0, 1, ...; add them or say --classes.")
    return usable


def _listed_classes(root: Path) -> list[str]:
    for name in _CLASS_FILES:
        if is_file(root / name):
            try:
                return [line.strip() for line in read_lines(root / name) if line.strip()]
            except ValueError as error:
                raise UserError(f"{root / name} cannot be read: {error}; write a name a line.") from None
    raise UserError(f"Folder {root} holds neither a data.yaml nor classes.txt; say --classes.")


def _image_folders(root: Path) -> dict[str, Path]:
    """Folders of images by split: images/SPLIT, SPLIT/images, images, or the folder itself."""
    if not is_folder(root):
        raise UserError(f"{root} does not exist; name a data.yaml or a folder.")
    images = root / "images"
    return split_folders(images) or split_folders(root) or {UNSPLIT: images if is_folder(images) else root}


def _images(root: Path, entries: Any) -> list[Path]:
    """The images of a split: of folders, of lists of images in text files, or of several of these."""
    found: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, str) or "\0" in entry:
            raise UserError(f"The data.yaml names {shown(entry)} as images; write a folder or a list in a text file.")
        path = root / entry
        if not exists(path) and entry.startswith("../"):  # an export's paths are from beside the splits
            path = root / entry[3:]
        if is_folder(path):
            found += _listed(path)
        elif path.suffix == ".txt" and is_file(path):
            try:
                lines = [line.strip() for line in read_lines(path)]
            except ValueError as error:
                raise UserError(f"{path} cannot be read: {error}; write the path of an image a line.") from None
            found += [root / line for line in lines if Path(line).suffix.lower() in IMAGE_SUFFIXES]
        else:
            raise UserError(f"{path} does not exist; correct the path in the data.yaml.")
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list_images(folder)
    except OSError as error:  # such as a folder that goes while it is walked
        raise UserError(f"Folder {folder} cannot be listed ({error}); name one that holds only images.") from None


def _named(root: Path, files: Sequence[Path]) -> list[tuple[str, Path]]:
    """The files with their names below the folder that holds all of them, without the folder "images"."""
    names = [Path(name_below(file, root)) for file in files]
    parents = [name.parent.parts for name in names]
    shared = 0
    while parents and all(len(parts) > shared and parts[shared] == parents[0][shared] for parts in parents):
        shared += 1
    return [(Path(*name.parts[shared:]).as_posix(), file) for name, file in zip(names, files, strict=True)]


def _label_file(image: Path) -> Path:
    """Return an image's label file: "labels" for the last folder "images" of its path, or the file beside the image."""
    parts = list(image.parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    beside, file = image.with_suffix(".txt"), Path(*parts).with_suffix(".txt")
    return beside if is_file(beside) and not is_file(file) else file


class _Reader:
    """The conventions of one source's lines."""

    def __init__(self, names: Sequence[str], boxes: Boxes):
        self.names = names
        self.boxes = boxes

    def picture(self, name: str, image: Path) -> Picture:
        height, width = picture_size(image, str(image))
        file = _label_file(image)
        instances: list[Instance] = []
        cases: list[Case] = []
        lines: list[str] = []
        if not exists(file):
            cases.append(Case("images without a file of labels, taken as empty", str(image)))
        else:
            try:
                lines = read_lines(file)
            except ValueError as error:
                cases.append(Case("files of labels that are not text, left out", f"{file} ({error})"))
        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            if not line.strip():
                continue
            try:
                category, outline = self._object(line)
            except ValueError as error:
                cases.append(Case(f"{error}, left out", where))
                continue
            instance, lost = instance_of_polygons(category, [outline * (width, height)], height, width, where)
            cases += lost
            if instance is not None:
                instances.append(instance)
        return Picture(name, image, height, width, tuple(instances), tuple(cases))

    def _object(self, line: str) -> tuple[str, Polygon]:
        """Class and outline, in shares of the sides; ValueError names, in the plural, what is wrong."""
        try:
            index, *values = (float(word) for word in line.split())
        except ValueError:
            raise ValueError("lines that do not hold numbers") from None
        if not 0 <= index < len(self.names) or index != int(index):  # the first fails for NaN and infinity
            raise ValueError("lines with a class that has no name")
        shares = np.array(values, np.float64)
        if not np.isfinite(shares).all() or (np.abs(shares) > _FARTHEST).any():
            raise ValueError("lines whose coordinates are not shares of the image's sides")
        if len(values) == 4:
            if self.boxes == "refuse":
                raise ValueError("lines with a box and no outline (--boxes rectangle takes them as rectangles)")
            x, y, width, height = values
            return self.names[int(index)], rectangle(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if len(values) < 6 or len(values) % 2:
            raise ValueError("lines with fewer than three points or half a point")
        return self.names[int(index)], shares.reshape(-1, 2)
