"""The output of every source: records, one per image, and the dataset that they belong to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mask_rcnn_jax.data.records.masks import Segmentation
from mask_rcnn_jax.data.records.shards import EncodedFile, ShardImage
from mask_rcnn_jax.disk.files import open_file


@dataclass(frozen=True, eq=False)
class Federated:
    """Knowledge of the classes in an image that was not searched for every class (LVIS)."""

    absent: Int[np.ndarray, " a"]  # classes 0..K-1 that are certainly not in the image
    not_exhaustive: Int[np.ndarray, " e"]  # classes of which only some instances are annotated


@dataclass(frozen=True, eq=False)
class BoxProposals:
    """Boxes of one image that may hold an object, best first."""

    boxes: Float[np.ndarray, "p 4"]  # (x1, y1, x2, y2) with an area, in pixels of the image, clipped to it
    scores: Float[np.ndarray, " p"]  # the higher the better; of any range


@dataclass(frozen=True, eq=False)
class SemanticLabels:
    """Files that say what each pixel of an image shows: PNGs of the image's size."""

    path: str  # of the numbers of segments
    # (number, kind of stuff or 0 for a thing, class of a thing or -1, 1 for a crowd)
    segments: Int[np.ndarray, "s 4"]
    num_kinds: int  # of the dataset, with 0 for all things
    kinds_path: str | None = None  # of the kinds themselves, made of the former


@dataclass(frozen=True, eq=False)
class Record:
    """One image with its usable annotations, in pixels of the original image as displayed (turned as EXIF says)."""

    image_id: int
    path: str  # the image file; where `shard` is set, only its name in messages
    height: int
    width: int
    boxes: Float[np.ndarray, "n 4"]  # (x1, y1, x2, y2) of the annotation, clipped to the image
    classes: Int[np.ndarray, " n"]  # 0..K-1
    segmentations: Sequence[Segmentation]
    iscrowd: Bool[np.ndarray, " n"]  # regions of many instances: for evaluation only
    areas: Float[np.ndarray, " n"]  # square pixels, as annotated
    annotation_ids: Int[np.ndarray, " n"]
    # (x, y, visibility), pixel index + 0.5, zeros where not annotated; None for a dataset without keypoints
    keypoints: Float[np.ndarray, "n J 3"] | None = None
    federated: Federated | None = None  # None: every class was looked for
    shard: ShardImage | None = None  # where the encoded image lies, if not in the file `path`
    source: int = 0  # which of the sources of a mixture it comes from
    proposals: BoxProposals | None = None  # None for a dataset without
    semantic: SemanticLabels | None = None  # None for a dataset without

    def open(self) -> EncodedFile:
        """The encoded image as a file to read; OSError where there is none."""
        return open_file(self.path) if self.shard is None else self.shard.open()


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """The records of one split, in the file's order, with images that have no annotations."""

    annotation_file: Path  # what messages name; a folder for shards and plain images
    records: Sequence[Record]
    categories: tuple[int, ...]  # category id of class 0..K-1, ascending
    class_names: tuple[str, ...]
    keypoint_names: tuple[str, ...] = ()  # of every instance, such as "left_eye"; none for most datasets
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints, from 0, that a picture joins by a line
    frequencies: tuple[str, ...] = ()  # LVIS: "r", "c" or "f" (rare, common, frequent) by class, else empty
    boxes_only: bool = False  # segmentations were not read: every mask is its box
    stuff_names: tuple[str, ...] = ()  # of kinds 1, 2, ... of what is no thing; none without semantic labels
    stuff_categories: tuple[int, ...] = ()  # category id of each of them
    weights: tuple[float, ...] = ()  # how often each source of a mixture is drawn; empty: every image as often
    problems: Counter[str] = field(default_factory=Counter)  # what is wrong -> how often
    examples: dict[str, str] = field(default_factory=dict)  # what is wrong -> the first case

    def describe_problems(self) -> list[str]:
        """A line for each kind of problem: how often, and the first case."""
        return [f"{self.annotation_file}: {n} {what}, e.g. {self.examples[what]}" for what, n in self.problems.items()]
