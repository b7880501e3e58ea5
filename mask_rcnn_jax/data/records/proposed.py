"""Records with what came with their images in other files: proposed boxes, and labels of pixels."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mask_rcnn_jax.data.records import BoxProposals, Record, SemanticLabels
from mask_rcnn_jax.data.records.shared import CutSequence, SharedArrays


class ProposedRecords(CutSequence[Record]):
    """The `records` with proposals, those of all images end to end in arrays that processes share.

    The arrays are `boxes` [N, 4] and `scores` [N] as in `BoxProposals`, and `first` [records + 1], which says where
    those of each record begin.
    """

    def __init__(self, records: Sequence[Record], shared: SharedArrays):
        self.records, self.shared = records, shared

    def __len__(self) -> int:
        return len(self.records)

    def _cut(self, row: int) -> Record:
        arrays = self.shared.arrays
        start, stop = arrays["first"][row : row + 2].tolist()
        proposals = BoxProposals(arrays["boxes"][start:stop], arrays["scores"][start:stop])
        return replace(self.records[row], proposals=proposals)


class LabelledRecords(CutSequence[Record]):
    """The `records` with semantic labels, those of all images end to end in arrays that processes share.

    The arrays are `segments` [N, 4] and `first` [records + 1], which says where those of each record begin; `names`,
    the bytes of both paths of each record, which `first_name` [2 records + 1] tells apart; and `num_kinds` [1].
    """

    def __init__(self, records: Sequence[Record], shared: SharedArrays):
        self.records, self.shared = records, shared

    def __len__(self) -> int:
        return len(self.records)

    def _cut(self, row: int) -> Record:
        arrays = self.shared.arrays
        start, stop = arrays["first"][row : row + 2].tolist()
        path, kinds_path = self._name(2 * row), self._name(2 * row + 1)
        num_kinds = int(arrays["num_kinds"][0])
        labels = SemanticLabels(path, arrays["segments"][start:stop], num_kinds, kinds_path or None)
        return replace(self.records[row], semantic=labels)

    def _name(self, index: int) -> str:
        start, stop = self.shared.arrays["first_name"][index : index + 2].tolist()
        return os.fsdecode(self.shared.arrays["names"][start:stop].tobytes())


def labelled(records: Sequence[Record], labels: Sequence[SemanticLabels]) -> LabelledRecords:
    """The records with the labels of each."""
    names = [os.fsencode(name) for each in labels for name in (each.path, each.kinds_path or "")]
    arrays = {
        "segments": np.concatenate([each.segments for each in labels]),
        "first": np.cumsum([0, *(len(each.segments) for each in labels)], dtype=np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "first_name": np.cumsum([0, *map(len, names)], dtype=np.int64),
        "num_kinds": np.array([labels[0].num_kinds], np.int64),
    }
    return LabelledRecords(records, SharedArrays(arrays))
