"""Counts of a split: images, objects and their sizes, classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

_SMALL, _MEDIUM = 32**2, 96**2  # square pixels: COCO's limits between small, medium and large


@dataclass(frozen=True)
class ClassCounts:
    """A category's share of the split."""

    id: Any
    name: str
    objects: int
    images: int  # that hold at least one object
    crowds: int


@dataclass(frozen=True)
class SplitCounts:
    """Annotations of known images and categories, as listed; objects are those that are no crowds."""

    images: int
    images_without_objects: int
    objects: int
    crowds: int
    objects_per_image_mean: float
    objects_per_image_median: float
    objects_per_image_max: int
    fullest_image: str  # the file with the most objects; empty where there are none
    smallest_image: tuple[int, int]  # (height, width) of the image of fewest pixels, as listed
    median_image: tuple[int, int]  # medians of heights and of widths
    largest_image: tuple[int, int]
    portrait_images: int  # higher than wide
    small: int  # objects of less than 32 x 32 pixels
    medium: int  # of less than 96 x 96
    large: int
    classes: tuple[ClassCounts, ...]  # in the order of their ids


def count_split(
    files: Mapping[Any, str],
    sizes: Sequence[tuple[int, int]],
    names: Mapping[Any, str],
    annotations: Sequence[tuple[Any, Any, bool, float | None]],
) -> SplitCounts:
    """Counts of a split.

    `files` and `names` are the image files and the categories by id, `sizes` (height, width) of the images;
    `annotations` have (image id, category id, is a crowd, area, or None where it has none).
    """
    objects = [(image, category, area) for image, category, crowd, area in annotations if not crowd]
    of_image = Counter(image for image, _, _ in objects)
    numbers = [of_image[image] for image in files]
    fullest = max(files, key=lambda image: of_image[image], default=None)
    of_class = Counter(category for _, category, _ in objects)
    crowds = Counter(category for _, category, crowd, _ in annotations if crowd)
    images = Counter(category for _, category in {(image, category) for image, category, _ in objects})
    areas = [area for _, _, area in objects if area is not None]
    by_pixels = sorted(sizes, key=lambda size: size[0] * size[1]) or [(0, 0)]
    middle = [int(median(size[axis] for size in by_pixels)) for axis in (0, 1)]
    return SplitCounts(
        images=len(sizes),
        images_without_objects=numbers.count(0),
        objects=len(objects),
        crowds=len(annotations) - len(objects),
        objects_per_image_mean=round(len(objects) / max(len(files), 1), 2),
        objects_per_image_median=float(median(numbers)) if numbers else 0.0,
        objects_per_image_max=max(numbers, default=0),
        fullest_image=files[fullest] if objects and fullest is not None else "",
        smallest_image=by_pixels[0],
        median_image=(middle[0], middle[1]),
        largest_image=by_pixels[-1],
        portrait_images=sum(height > width for height, width in sizes),
        small=sum(area < _SMALL for area in areas),
        medium=sum(_SMALL <= area < _MEDIUM for area in areas),
        large=sum(area >= _MEDIUM for area in areas),
        classes=tuple(
            ClassCounts(category, name, of_class[category], images[category], crowds[category])
            for category, name in names.items()
        ),
    )
