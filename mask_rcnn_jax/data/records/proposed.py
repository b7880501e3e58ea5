"""Records with the boxes that were proposed for their images."""

from collections.abc import Sequence
from dataclasses import replace

from mask_rcnn_jax.data.records import BoxProposals, Record
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
