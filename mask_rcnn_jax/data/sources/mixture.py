"""Several datasets as one, with the classes of the first."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mask_rcnn_jax.data.records import CocoDataset, Federated, Record
from mask_rcnn_jax.data.records.packed import pack
from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import AboveZero, check


@dataclass(frozen=True)
class MixtureConfig(SourceConfig):
    """Several sources to train on together, each drawn in proportion to its weight; the first one validates.

    All must have the same class names, in any order and with any ids: an image of a source that lacks a class would
    teach that the class is background. Classes and ids are the first source's.
    """

    sources: tuple[SourceConfig, ...] = ()
    weights: tuple[AboveZero, ...] = ()  # positive, one a source; none: every image is drawn as often as any other

    def __post_init__(self) -> None:
        check(self)
        if any(isinstance(source, MixtureConfig) for source in self.sources):
            raise ValueError("a mixture holds no mixtures; list all sources in one")
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(f"weights must be one for each of {len(self.sources)} sources, not {self.weights}")

    def load(self, split: str) -> CocoDataset:
        """Read the split: "train" is that of all sources, and "val" the first one's."""
        if not self.sources:
            raise UserError("data.source mixes no sources; list them in data.source.sources, in a config file.")
        if split == self.val_split:
            return _without_stuff(self.sources[0].load(self.sources[0].val_split))
        if split != self.train_split:
            raise UserError(f"A mixture has the splits train and val, not '{split}'; name one of them.")
        return mix([source.load(source.train_split) for source in self.sources], self.weights)

    def prepare(self) -> None:
        for source in self.sources:
            source.prepare()

    def check_prepared(self) -> None:
        for source in self.sources:
            source.check_prepared()


def mix(datasets: Sequence[CocoDataset], weights: Sequence[float] = ()) -> CocoDataset:
    """The records of all datasets, one dataset after the other; classes are matched by name.

    `weights` say how often each dataset is drawn, every image as often where there are none. Image ids may repeat, so
    such a dataset is to train on, not to evaluate. Raises `UserError` where the class names or the keypoints differ.
    """
    first = datasets[0]
    for other in datasets[1:]:
        _check_same_classes(first, other)
        if other.keypoint_names != first.keypoint_names:
            raise UserError(
                f"{first.annotation_file} and {other.annotation_file} have different keypoints; mix sources with the "
                "same ones in the same order."
            )
    problems: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for dataset in datasets:
        problems += dataset.problems
        examples = {what: f"{case} in {dataset.annotation_file}" for what, case in dataset.examples.items()} | examples

    def records() -> Iterator[Record]:
        for source, dataset in enumerate(datasets):
            yield from _with_classes_of(first, dataset, source)

    return replace(
        _without_stuff(first),
        annotation_file=Path(" + ".join(str(dataset.annotation_file) for dataset in datasets)),
        records=pack(records()),
        # Frequencies are for evaluation, and each source has its own.
        frequencies=(),
        boxes_only=any(dataset.boxes_only for dataset in datasets),
        weights=tuple(weights),
        problems=problems,
        examples=examples,
    )


def _without_stuff(dataset: CocoDataset) -> CocoDataset:
    """Kinds of stuff are matched by no name: a mixture has none."""
    return replace(dataset, stuff_names=(), stuff_categories=())


def _check_same_classes(first: CocoDataset, other: CocoDataset) -> None:
    for dataset in (first, other):
        if len({*dataset.class_names}) < len(dataset.class_names):
            raise UserError(f"{dataset.annotation_file} names a class twice; sources to mix need different names.")
    for one, two in ((first, other), (other, first)):
        lacking = [name for name in one.class_names if name not in two.class_names]
        if lacking:
            raise UserError(
                f"{two.annotation_file} lacks the classes {', '.join(lacking[:5])}{', ...' if lacking[5:] else ''} of "
                f"{one.annotation_file}; its images would teach that they are background. Mix sources with the same "
                "class names."
            )


def _with_classes_of(first: CocoDataset, dataset: CocoDataset, source: int) -> Iterator[Record]:
    class_of = np.array([first.class_names.index(name) for name in dataset.class_names], np.int32)
    for record in dataset.records:
        federated = record.federated
        if federated is not None:
            federated = Federated(class_of[federated.absent], class_of[federated.not_exhaustive])
        yield replace(record, classes=class_of[record.classes], federated=federated, source=source)
