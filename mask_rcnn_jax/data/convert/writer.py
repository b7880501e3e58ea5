"""Writes what a reader found as a COCO directory, beside its place, and moves it there when it is whole."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mask_rcnn_jax.data.convert.json_files import read_object
from mask_rcnn_jax.data.convert.source import Case, Instance, Picture, Source, Task, Unusable
from mask_rcnn_jax.data.records.entries import check_category, list_of
from mask_rcnn_jax.data.records.masks import to_rle
from mask_rcnn_jax.disk.files import exists, is_folder, is_taken
from mask_rcnn_jax.disk.output_folder import lies_in
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.rle import area_of, as_text, window_of

PlaceImage = Literal["link", "symlink", "copy"]

_NO_LINKS = (errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)  # as of FAT, and some network file systems


class _NotUndone(Exception):
    """A failure after which what was replaced is not back in its place."""


@dataclass(frozen=True)
class Written:
    """The result of a conversion."""

    images: dict[str, int]  # by split
    instances: dict[str, int]
    crowds: dict[str, int]
    categories: dict[str, int]  # ids by name
    cases: tuple[Case, ...]  # all that was left out or changed


def write_coco(
    source: Source, root: Path, out: Path, *, images: PlaceImage = "link", overwrite: bool = False
) -> Written:
    """Writes `out/annotations/instances_SPLIT.json` and `out/SPLIT/` for each split of `source`, read from `root`.

    Other splits of `out` stay as they are, and their categories are taken over. Images are hard links (symbolic links
    where the file system has none), symbolic links, or copies. The same input gives the same bytes. Raises UserError
    for a split that is there already unless `overwrite` says to replace it, for one that would be without objects, and
    for classes that do not fit those of the other splits; then nothing has been written.
    """
    _check_target(out, source.splits, root, overwrite)
    pictures: dict[str, list[Picture]] = {}
    cases = list(source.cases)
    for split, tasks in source.splits.items():
        pictures[split] = _read(tasks, cases)
        if not any(picture.instances for picture in pictures[split]):
            first = f" The first problem: {cases[0].what}: {cases[0].where}." if cases else ""
            raise UserError(f"Split '{split}' of {root} has no objects that can be used.{first}")
        _check_kept(out / split, pictures[split])
    categories = _categories(source, out, pictures)
    try:
        _write(pictures, categories, out, images)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); make room or choose another --out.") from None
    return Written(
        images={split: len(of_split) for split, of_split in pictures.items()},
        instances={
            split: _count(of_split, lambda instance: not instance.iscrowd) for split, of_split in pictures.items()
        },
        crowds={split: _count(of_split, lambda instance: instance.iscrowd) for split, of_split in pictures.items()},
        categories=categories,
        cases=tuple(cases),
    )


def _annotation_name(split: str) -> str:
    return f"instances_{split}.json"


def _count(pictures: Sequence[Picture], which: Callable[[Instance], bool]) -> int:
    return sum(which(instance) for picture in pictures for instance in picture.instances)


def _check_target(out: Path, splits: Iterable[str], root: Path, overwrite: bool) -> None:
    if exists(out) and not is_folder(out):
        raise UserError(f"--out {out} is a file; name a folder.")
    taken = {".", "..", "annotations"}
    for split in splits:
        # Some file systems do not tell "Train" from "train".
        if not split or split.casefold() in taken or "/" in split or "\\" in split:
            raise UserError(f"'{split}' cannot be the name of a split; choose a plain word.")
        taken.add(split.casefold())
        folder, file = out / split, out / "annotations" / _annotation_name(split)
        for path in (folder, file):
            if not is_taken(path):
                continue
            if not overwrite:
                raise UserError(
                    f"{path} exists already; choose another --out or split, or replace it with --overwrite."
                )
            if lies_in(root, path) or lies_in(path, root):
                raise UserError(f"{path} is part of the input, so --overwrite would delete it; choose another --out.")


def _check_kept(folder: Path, pictures: Sequence[Picture]) -> None:
    """Raises UserError where replacing `folder` would delete images that are to be converted."""
    files = (picture.content for picture in pictures if isinstance(picture.content, Path))
    folders = {os.path.dirname(os.path.realpath(file)) for file in files}
    if any(lies_in(Path(holder), folder) for holder in folders):
        raise UserError(f"{folder} holds images of the input, so --overwrite would delete them; choose another --out.")


def _write(
    pictures: Mapping[str, Sequence[Picture]], categories: dict[str, int], out: Path, images: PlaceImage
) -> None:
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=parent))
    replaced = beside / "replaced"
    try:
        target = beside / "coco"
        (target / "annotations").mkdir(parents=True)
        for split, of_split in pictures.items():
            for picture in of_split:
                _place(picture, target / split / picture.file_name, images)
            content = json.dumps(_coco(of_split, categories), separators=(",", ":"))
            (target / "annotations" / _annotation_name(split)).write_text(content)
        _move(target, out, list(pictures), replaced)
    except _NotUndone as error:
        raise UserError(
            f"{out} cannot be written ({error}), nor put back what it held, which lies in {replaced}; move it back."
        ) from None
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(beside, ignore_errors=True)


def _read(tasks: Sequence[Task], cases: list[Case]) -> list[Picture]:
    """The pictures of a split by file name, with what was left out appended to `cases`."""

    def read(task: Task) -> Picture | Case:
        try:
            return task.read()
        except Unusable as error:
            return Case(*error.args)

    found: dict[str, Picture] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for task, picture in zip(tasks, pool.map(read, tasks), strict=True):
            if isinstance(picture, Case):
                cases.append(picture)
            elif picture.file_name in found:
                cases.append(Case("further annotations of an image, left out", f"{picture.file_name}, in {task.name}"))
            else:
                cases.extend(picture.cases)
                found[picture.file_name] = picture
    return [found[name] for name in sorted(found)]


def _categories(source: Source, out: Path, pictures: dict[str, list[Picture]]) -> dict[str, int]:
    """Ids by name: those of the splits that `out` holds already, else the source's own, else of the sorted names."""
    of_split = pictures.values()
    used = sorted({instance.category for all_ in of_split for picture in all_ for instance in picture.instances})
    categories = source.categories or {name: index + 1 for index, name in enumerate(used)}
    held = out.glob("annotations/instances_*.json") if is_folder(out) else ()  # raises for a long name
    kept = sorted({*held} - {out / "annotations" / _annotation_name(s) for s in pictures})
    for file in kept:
        try:
            listed = list_of(read_object(file), "categories")
            existing = {name: id_ for id_, name in map(check_category, listed)}
        except ValueError as error:
            raise UserError(f"{file} is no COCO annotation file ({error}); choose another --out.") from None
        fits = set(used) <= set(existing) if source.categories is None else categories == existing
        if not fits:
            raise UserError(
                f"The classes {', '.join(categories)} are not those of {file} ({', '.join(existing)}); convert all"
                " splits at once, give both the same --classes, or choose another --out."
            )
        categories = existing
    return categories


def _coco(pictures: Sequence[Picture], categories: dict[str, int]) -> dict[str, Any]:
    """The content of COCO's instances file."""
    images, annotations = [], []
    for image_id, picture in enumerate(pictures, 1):
        size = {"height": picture.height, "width": picture.width}
        images.append({"id": image_id, "file_name": picture.file_name} | size)
        for instance in picture.instances:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": categories[instance.category]}
            annotations.append(ids | _annotation(instance, picture.height, picture.width))
    listed = [{"id": id_, "name": name} for name, id_ in sorted(categories.items(), key=lambda item: item[1])]
    return {"images": images, "annotations": annotations, "categories": listed}


def _annotation(instance: Instance, height: int, width: int) -> dict[str, Any]:
    """COCO's entry for an object, without ids: the area in pixels, the box around the outline or the pixels."""
    rle = to_rle(instance.segmentation, height, width)
    if isinstance(instance.segmentation, dict):
        segmentation: Any = as_text(rle)
        x1, y1, x2, y2 = map(float, window_of(rle))
        box = [x1, y1, x2 - x1, y2 - y1]
    else:
        segmentation = [polygon.tolist() for polygon in instance.segmentation]
        corners = np.concatenate([polygon.reshape(-1, 2) for polygon in instance.segmentation])
        low, high = corners.min(axis=0), corners.max(axis=0)
        box = np.round(np.concatenate([low, high - low]), 3).tolist()
    return {"iscrowd": int(instance.iscrowd), "bbox": box, "area": area_of(rle), "segmentation": segmentation}


def _place(picture: Picture, target: Path, how: PlaceImage) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture.content, bytes):
        target.write_bytes(picture.content)
        return
    source = picture.content.resolve()  # a link to a link would break with the first
    if how == "copy":
        shutil.copyfile(source, target)
        return
    if how == "link":
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links, or files of someone else
            pass
    try:
        target.symlink_to(source)
    except OSError as error:
        if how == "symlink" or error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def _move(target: Path, out: Path, splits: Sequence[str], replaced: Path) -> None:
    """Moves what was written to its place; what it replaces goes to `replaced`.

    Annotations leave first and come last: in between the split has none, which every reader refuses. Where a move
    fails, those before it are undone; _NotUndone where that fails, too.
    """
    if not exists(out):
        os.replace(target, out)
        return
    (out / "annotations").mkdir(exist_ok=True)
    (replaced / "annotations").mkdir(parents=True)
    moved: list[tuple[Path, Path]] = []
    try:
        for split in splits:
            parts = Path("annotations") / _annotation_name(split), Path(split)
            moves = [(out / part, replaced / part) for part in parts if is_taken(out / part)]
            moves += [(target / part, out / part) for part in reversed(parts)]
            for source, destination in moves:
                moved.append((source, destination))  # before it is: Ctrl-C may come between the two
                os.replace(source, destination)
    except BaseException as error:
        try:
            for source, destination in reversed(moved):
                if not is_taken(source):
                    os.replace(destination, source)
        except (OSError, KeyboardInterrupt):
            raise _NotUndone(str(error) or "interrupted") from error
        raise
