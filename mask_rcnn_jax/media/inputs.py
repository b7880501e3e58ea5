"""The images and videos that a person's paths, folders and patterns name, each with a name for what is made of it."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask_rcnn_jax.disk.files import exists, is_file, is_folder
from mask_rcnn_jax.disk.output_folder import without_outputs
from mask_rcnn_jax.media.image_files import IMAGE_SUFFIXES, UNREADABLE, count_frames, list_images, opened_image
from mask_rcnn_jax.media.video import VIDEO_SUFFIXES


@dataclass(frozen=True)
class InputImage:
    path: Path  # of an image or a video
    name: str  # of its outputs: a relative path without suffix, of which no two are the same


def find_images(inputs: Sequence[str]) -> tuple[list[InputImage], list[str]]:
    """The images and videos that `inputs` name, each once, in their order; and a sentence for each input without any.

    An input is a file, whatever its suffix, a folder, with the folders in it, or a pattern such as "set/**/*.png". What
    an earlier command wrote into folders there is no input, unless it is named itself.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    problems = []
    for text in inputs:
        files = _files(text)
        if isinstance(files, str):
            problems.append(files)
            continue
        for path, relative in files:
            found.setdefault(path.resolve(), (path, relative))
    names = _names([relative for _, relative in found.values()])
    return [InputImage(path, name) for (path, _), name in zip(found.values(), names, strict=True)], problems


def frame_count(path: Path) -> int:
    """Count the frames of an animated image or a stack; 1 for any other file."""
    try:
        with opened_image(path) as image:
            return count_frames(image)
    except UNREADABLE:
        return 1


def _files(text: str) -> list[tuple[Path, Path]] | str:
    """Files, each with its path relative to what names the outputs; or what is wrong."""
    path = Path(text)
    if is_folder(path):
        files = without_outputs(list_images(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES), path)
        images = [(image, image.relative_to(path)) for image in files]
        return images or f"{text} holds no image; name a folder of images or videos"
    if exists(path):
        return [(path, Path(path.name))]
    if not glob.has_magic(text):
        return f"{text} does not exist; name an image, a folder or a pattern"
    # Folders that are there are no pattern, whatever their names hold; below them files of one name may be in several.
    fixed = next((parent for parent in path.parents if is_folder(parent)), Path())
    matches = sorted(glob.glob(str(path.relative_to(fixed)), root_dir=fixed, recursive=True))
    files = without_outputs([fixed / match for match in matches if is_file(fixed / match)], fixed)
    images = [(file, file.relative_to(fixed)) for file in files]
    return images or f"{text} matches no file; correct the pattern"


def _names(relative: Sequence[Path]) -> list[str]:
    """Paths without their suffix, which stays with those that would be the same, and with a number where it must."""
    plain = [path.with_suffix("").as_posix() for path in relative]
    often = Counter(name.casefold() for name in plain)
    names: list[str] = []
    taken: set[str] = set()
    for path, name in zip(relative, plain, strict=True):
        if often[name.casefold()] > 1:
            name = f"{name}_{path.suffix[1:]}"
        unique, number = name, 1
        while unique.casefold() in taken or (unique != name and unique.casefold() in often):
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.casefold())
        names.append(unique)
    return names
