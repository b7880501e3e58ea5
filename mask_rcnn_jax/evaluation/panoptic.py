"""Panoptic quality (Kirillov et al. 2019, https://arxiv.org/abs/1801.00868), and the mean IoU of kinds of stuff.

Panoptic quality as COCO's panopticapi computes it: of each category, segments of truth and of a prediction match whose
IoU is above a half, and PQ = (sum of the IoU of matches) / (matches + half of all segments that have none), which is
the product of SQ (their mean IoU) and RQ. Pixels of the truth that belong to no segment are void: they count in no
union, and predictions that lie mostly in them, or in crowds of their category, count for nothing. The mean over
categories leaves out those that have no segment in either.

`H W` are the sides of an image, `C` categories: the classes of things, then the kinds of stuff.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, UInt8

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import CocoDataset, Record, read_kinds, read_numbers
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.inference.results.panoptic import panoptic_map
from mask_rcnn_jax.models import PanopticConfig
from mask_rcnn_jax.structures import IGNORED

_SHIFT = 1 << 32  # above all numbers of segments: two in one number


@dataclass(frozen=True)
class Regions:
    """A map of segments: the number of each pixel, 0 for void, and of each number its category."""

    numbers: Int[np.ndarray, "H W"]
    category_of: dict[int, int]  # of segments that count
    crowds: dict[int, int] = field(default_factory=dict)  # category of those that are regions of many things


@dataclass(frozen=True)
class PanopticCounts:
    """Sums over images, by category, and by kind of stuff."""

    iou: np.ndarray  # [C] of matches
    matched: np.ndarray  # [C]
    missed: np.ndarray  # [C] segments of the truth without a match
    wrong: np.ndarray  # [C] segments of predictions without one
    pixels: np.ndarray  # [S, S] of each kind (row) that were taken for each (column)

    @classmethod
    def none(cls, categories: int, kinds: int) -> "PanopticCounts":
        """Nothing counted yet."""
        iou, matched, missed, wrong = np.zeros((4, categories))
        return cls(iou, matched, missed, wrong, np.zeros((kinds, kinds)))

    def add(self, other: "PanopticCounts") -> None:
        """Add the counts of other images to these."""
        for own, more in zip(vars(self).values(), vars(other).values(), strict=True):
            own += more

    def count_segments(self, truth: Regions, found: Regions) -> None:
        """Count one image's segments."""
        areas = {name: _areas(regions.numbers) for name, regions in (("truth", truth), ("found", found))}
        both = _areas(truth.numbers.astype(np.int64) * _SHIFT + found.numbers)
        common = {divmod(pair, _SHIFT): area for pair, area in both.items()}
        matched_truth, matched_found = set[int](), set[int]()
        for (number, other), area in common.items():
            category = truth.category_of.get(number)
            if category is None or found.category_of.get(other) != category:
                continue
            union = areas["truth"][number] + areas["found"][other] - area - common.get((0, other), 0)
            if area / union > 0.5:
                self.iou[category] += area / union
                self.matched[category] += 1
                matched_truth.add(number)
                matched_found.add(other)
        for number, category in truth.category_of.items():
            self.missed[category] += number not in matched_truth
        crowd_of = {category: number for number, category in truth.crowds.items()}  # the last one, as panopticapi
        for other, category in found.category_of.items():
            excused = common.get((0, other), 0) + common.get((crowd_of.get(category, -1), other), 0)
            self.wrong[category] += other not in matched_found and excused / areas["found"][other] <= 0.5

    def count_pixels(self, truth: UInt8[np.ndarray, "H W"], found: UInt8[np.ndarray, "H W"]) -> None:
        """Count one image's pixels whose kind is known."""
        kinds, known = len(self.pixels), truth != IGNORED
        pairs = truth[known].astype(np.int64) * kinds + found[known]
        self.pixels[:] += np.bincount(pairs, minlength=kinds * kinds).reshape(kinds, kinds)


class PanopticCounter:
    """Counts the predictions of one image after the other, of which nothing is kept, beside a dataset's labels."""

    def __init__(self, dataset: CocoDataset, config: PanopticConfig):
        self._dataset, self._config = dataset, config
        self._records = {record.image_id: index for index, record in enumerate(dataset.records)}
        self._num_things, num_stuff = len(dataset.class_names), len(dataset.stuff_names)
        self._counts = PanopticCounts.none(self._num_things + num_stuff, num_stuff + 1)
        self._has_masks = True

    def counted(
        self,
        predictions: Iterable[tuple[int, Detections]],
        on_broken: Callable[[Record, UserError], None] | None = None,
    ) -> Iterator[tuple[int, Detections]]:
        """Give the predictions on after they were counted.

        Those of images whose labels cannot be read are left out and told to `on_broken`; without it, `UserError` is
        raised.
        """
        for image_id, found in predictions:
            record = self._dataset.records[self._records[image_id]]
            try:
                self.count(record, found)
            except UserError as error:
                if on_broken is None:
                    raise
                on_broken(record, error)
                continue
            yield image_id, found

    def count(self, record: Record, found: Detections) -> None:
        """Count what was found in one image. Raises `UserError` where its labels cannot be read."""
        if found.stuff is None or record.semantic is None:
            raise ValueError(f"{record.path} has no labels of pixels, or the model finds none")
        # All is read before anything is counted: an image counts as a whole or not at all.
        kinds, truth = read_kinds(record), None if found.rles is None else read_numbers(record)
        self._counts.count_pixels(kinds, found.stuff)
        self._has_masks = self._has_masks and truth is not None
        if truth is None:
            return
        numbers, segments = panoptic_map(found, self._config)
        of_found = {each.number: self._category(each.kind if each.is_thing else -1, each.kind) for each in segments}
        rows = record.semantic.segments.tolist()
        of_truth = {number: self._category(thing, kind) for number, kind, thing, crowd in rows if not crowd}
        crowds = {number: self._category(thing, kind) for number, kind, thing, crowd in rows if crowd}
        self._counts.count_segments(Regions(truth, of_truth, crowds), Regions(numbers, of_found))

    def metrics(self) -> dict[str, float]:
        """The metrics of all processes' images: "panoptic/PQ", SQ and RQ, each also of things and of stuff alone, and
        "stuff/mIoU", where things are one kind. All lie in 0..1; NaN where nothing decides.
        """
        total = PanopticCounts.none(len(self._counts.iou), len(self._counts.pixels))
        parts = processes.gather((vars(self._counts), self._has_masks))
        for counts, _ in parts:
            total.add(PanopticCounts(**counts))
        metrics = {"stuff/mIoU": _mean_iou(total.pixels)}
        if all(has_masks for _, has_masks in parts):
            for suffix, part in (
                ("", slice(None)),
                ("_things", slice(self._num_things)),
                ("_stuff", slice(self._num_things, None)),
            ):
                metrics |= {f"panoptic/{name}{suffix}": value for name, value in _qualities(total, part).items()}
        return metrics

    def _category(self, thing: int, kind: int) -> int:
        return thing if thing >= 0 else self._num_things + kind - 1


def _areas(numbers: Int[np.ndarray, "H W"]) -> dict[int, int]:
    values, counts = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _qualities(counts: PanopticCounts, part: slice) -> dict[str, float]:
    """The means over the categories that have segments."""
    iou, matched, missed, wrong = counts.iou[part], counts.matched[part], counts.missed[part], counts.wrong[part]
    size = matched + (missed + wrong) / 2
    known = size > 0
    if not known.any():
        return {"PQ": float("nan"), "SQ": float("nan"), "RQ": float("nan")}
    quality = {
        "PQ": iou[known] / size[known],
        "SQ": iou[known] / np.maximum(matched[known], 1),
        "RQ": matched[known] / size[known],
    }
    return {name: float(values.mean()) for name, values in quality.items()}


def _mean_iou(pixels: np.ndarray) -> float:
    """The mean over the kinds that the truth has."""
    of_truth, both = pixels.sum(axis=1), np.diag(pixels)
    known = of_truth > 0
    union = (of_truth + pixels.sum(axis=0) - both)[known]
    return float(np.mean(both[known] / union)) if known.any() else float("nan")
