"""All checks of a dataset, one after the other."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mask_rcnn_jax.data.lint.annotations import Split, read_split
from mask_rcnn_jax.data.lint.copies import find_copies
from mask_rcnn_jax.data.lint.findings import Finding, Report, in_order
from mask_rcnn_jax.data.lint.images import check_images
from mask_rcnn_jax.data.sources.coco import CocoConfig
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError

_FIRST = ("train", "val", "test")  # splits in this order, whatever else a name says


def lint(
    root: Path,
    splits: Sequence[str] | None = None,
    annotation_file: str = CocoConfig.annotation_file,
    decode: bool = True,
) -> Report:
    """Checks the splits of a COCO directory, by default all that it has annotations for.

    Without `decode` only the headers of the images are read: truncated files and copies are not found. Raises UserError
    where there is no such directory or split; everything else that is wrong is a finding.
    """
    if not is_folder(root):
        raise UserError(f"Data directory {root} does not exist; name a COCO-style directory.")
    checked = [
        read_split(root, name, f"annotations/{annotation_file.replace('{split}', name)}")
        for name in _split_names(root, splits, annotation_file)
    ]
    files = check_images(root, checked, decode)
    ids = {split.path(entry): entry["id"] for split in reversed(checked) for entry in reversed(split.images)}
    copies = [replace(finding, image_id=ids[finding.file]) for finding in find_copies(files)]
    findings = [finding for split in checked for finding in split.findings]
    return Report(
        dataset=str(root),
        splits={split.name: split.counts for split in checked if split.counts is not None},
        findings=in_order(findings + _check_same_categories(checked) + copies),
    )


def _split_names(root: Path, asked: Sequence[str] | None, pattern: str) -> list[str]:
    before, between, after = pattern.partition("{split}")
    if not between:
        raise UserError(f"--annotation-file {pattern} must hold {{split}} where the name of the split goes.")
    folder = root / "annotations"
    shape = re.compile(f"{re.escape(before)}(.+){re.escape(after)}")
    matches = [shape.fullmatch(path.name) for path in sorted(folder.glob("*"))] if is_folder(folder) else []
    there = [match[1] for match in matches if match]
    if not there:
        raise UserError(f"{folder} holds no {pattern}; name a COCO-style directory, or its --annotation-file.")
    for name in asked or []:
        if name not in there:
            raise UserError(f"{root} has no annotations of a split '{name}'; choose from {', '.join(there)}.")
    place = {name: index for index, name in enumerate(_FIRST)}
    return list(dict.fromkeys(asked or sorted(there, key=lambda name: (place.get(name, len(_FIRST)), name))))


def _check_same_categories(splits: Sequence[Split]) -> list[Finding]:
    """A split whose ids mean something else than the first one's would be trained or evaluated as the wrong classes."""
    readable = [split for split in splits if split.counts is not None]
    findings = []
    for split in readable[1:]:
        first = readable[0]
        if split.categories == first.categories:
            continue
        ids = sorted({*split.categories, *first.categories})
        id_ = next(id_ for id_ in ids if split.categories.get(id_) != first.categories.get(id_))
        message = f"category {id_} is {_called(split, id_)} here and {_called(first, id_)} in {first.annotation_file}"
        findings.append(Finding("categories-differ", message, split.name, split.annotation_file, category_id=id_))
    return findings


def _called(split: Split, id_: int) -> str:
    return f"'{split.categories[id_]}'" if id_ in split.categories else "missing"
