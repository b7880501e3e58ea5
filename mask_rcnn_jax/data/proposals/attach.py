"""Gives a dataset the proposals of its images."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from mask_rcnn_jax.data.augment.transforms import clip_boxes
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.proposals.files import ProposalFile, read_proposals
from mask_rcnn_jax.data.records import BoxProposals, CocoDataset, Record
from mask_rcnn_jax.data.records.proposed import ProposedRecords
from mask_rcnn_jax.data.records.shared import SharedArrays
from mask_rcnn_jax.errors import UserError


def load_split(config: DataConfig, split: str) -> CocoDataset:
    """Read a split of the source, with its proposals where `data.proposals` names files of them.

    The train split has those of `data.proposals.train`, any other those of `data.proposals.val`. Raises `UserError` as
    the source does, and as `with_proposals`.
    """
    dataset = config.source.load(split)
    if config.proposals is None:
        return dataset
    pattern = config.proposals.train if split == config.source.train_split else config.proposals.val
    return with_proposals(dataset, pattern.replace("{split}", split), config.proposals.slots)


def with_proposals(dataset: CocoDataset, path: str | Path, slots: int) -> CocoDataset:
    """The dataset whose records have the proposals of the file `path`, the `slots` best of each image, best first.

    Boxes are clipped to their image. Left out and counted: those that are not finite or have no area then. An image of
    which the file says nothing has none, and is counted. Raises `UserError` where that is every image, where image ids
    repeat, and as `read_proposals`.
    """
    file = read_proposals(path)
    reader = _Reader(file, slots)
    found = [reader.of_record(record) for record in dataset.records]
    ids = {record.image_id for record in dataset.records}
    if len(ids) < len(found):
        raise UserError(
            f"{dataset.annotation_file} has image ids that repeat, as in a mixture, so {path} cannot tell whose"
            " proposals it holds; set data.proposals to none, or give every image an id of its own"
        )
    if not ids & file.rows.keys():
        raise UserError(
            f"{path} has no proposals of the {len(ids)} images of {dataset.annotation_file}; name the file of that"
            " split in data.proposals"
        )
    reader.count("images in the file of proposals that the split does not have", len(file.rows.keys() - ids), str(path))
    boxes, scores = np.concatenate([each.boxes for each in found]), np.concatenate([each.scores for each in found])
    first = np.cumsum([0, *(len(each.scores) for each in found)], dtype=np.int64)
    shared = SharedArrays({"boxes": boxes, "scores": scores, "first": first})
    return replace(
        dataset,
        records=ProposedRecords(dataset.records, shared),
        problems=dataset.problems + reader.problems,
        examples=reader.examples | dataset.examples,
    )


class _Reader:
    """Takes the proposals of images out of a file, and counts in `problems` what cannot be used."""

    def __init__(self, file: ProposalFile, slots: int):
        self._file, self._slots = file, slots
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def of_record(self, record: Record) -> BoxProposals:
        """The best proposals of an image, in float32."""
        if record.image_id not in self._file.rows:
            self.count("images without proposals", 1, f"{record.path} in {self._file.path}")
            return BoxProposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        given = self._file.of_image(record.image_id)
        finite = np.isfinite(given.boxes).all(axis=1) & np.isfinite(given.scores)
        boxes = clip_boxes(np.where(finite[:, None], given.boxes, np.float32(0)), (0, 0, record.width, record.height))
        usable = finite & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        example = f"of {record.path} in {self._file.path}"
        self.count("proposals that are not finite, left out", int((~finite).sum()), example)
        self.count("proposals without area in their image, left out", int((finite & ~usable).sum()), example)
        rows = np.flatnonzero(usable)
        best = rows[np.argsort(-given.scores[rows], kind="stable")[: self._slots]]
        return BoxProposals(boxes[best], given.scores[best])

    def count(self, what: str, number: int, example: str) -> None:
        """Count so many more of what is wrong; `example` is kept of the first."""
        if number:
            self.problems[what] += number
            self.examples.setdefault(what, example)
