"""The share of annotated instances that proposals cover."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from mask_rcnn_jax.data import BoxProposals, Record
from mask_rcnn_jax.evaluation.matching import match

LIMITS = (100, 300, 1000, 2000)  # proposals of an image
_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's


def proposal_recall(
    found: Iterable[tuple[Record, BoxProposals]], limits: Sequence[int] = LIMITS
) -> tuple[Float[np.ndarray, " limits"], Float[np.ndarray, " limits"]]:
    """Recall at an IoU of .5, and the average over those from .5 to .95, of the best proposals of each image.

    As COCO counts, whatever the classes: proposals, best first, take the free instance of highest IoU, each one. Crowds
    do not count. NaN where there are no instances.
    """
    matched = np.zeros((len(limits), len(_THRESHOLDS)))
    instances = 0
    for record, proposals in found:
        boxes = record.boxes[~record.iscrowd]
        instances += len(boxes)
        nothing = np.zeros(len(boxes), bool)
        taken = match(_ious(proposals.boxes, boxes), np.minimum(_THRESHOLDS, 1 - 1e-10), nothing, nothing) >= 0
        for row, limit in enumerate(limits):
            matched[row] += taken[:, :limit].sum(axis=1)
    recall = matched / instances if instances else np.full_like(matched, np.nan)
    return recall[:, 0], recall.mean(axis=1)


def _ious(proposals: Float[np.ndarray, "p 4"], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "p n"]:
    a, b = proposals.astype(np.float64)[:, None], boxes.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.maximum(sides, 0).prod(axis=-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b)]
    return common / (areas[0] + areas[1] - common)
