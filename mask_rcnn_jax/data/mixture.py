"""Several datasets as one, with the classes of the first."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mask_rcnn_jax.data.packed import pack
from mask_rcnn_jax.data.records import CocoDataset, Federated, Record
from mask_rcnn_jax.errors import UserError


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
        first,
        annotation_file=Path(" + ".join(str(dataset.annotation_file) for dataset in datasets)),
        records=pack(records()),
        # Frequencies are for evaluation, and each source has its own.
        frequencies=(),
        boxes_only=any(dataset.boxes_only for dataset in datasets),
        weights=tuple(weights),
        problems=problems,
        examples=examples,
    )


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
