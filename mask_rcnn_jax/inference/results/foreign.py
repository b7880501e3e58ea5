"""Checks of entries of COCO results files, which another program may have written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask_rcnn_jax.data.records.entries import is_number, shown

_LARGEST = 2.0**53  # of a coordinate: squares and products stay finite


def check_result(result: Any, category_ids: Sequence[int]) -> None:
    """Check category, score, box and keypoints, the latter two where there are any.

    Raises ValueError with the rest of a sentence that begins with the result's name.
    """
    if not isinstance(result, Mapping):
        raise ValueError(f"is {shown(result)}, not an object")
    if result.get("category_id") not in category_ids:
        raise ValueError(f"has the unknown category_id {shown(result.get('category_id'))}")
    if not is_number(result.get("score"), _LARGEST):
        raise ValueError(f"has the score {shown(result.get('score'))}, which is not a number")
    if "bbox" in result and _count(result["bbox"]) != 4:
        raise ValueError(f"has the bbox {shown(result['bbox'])}, which is not four numbers")
    if "keypoints" in result and (not _count(result["keypoints"]) or _count(result["keypoints"]) % 3):
        raise ValueError(f"has the keypoints {shown(result['keypoints'])}, which are not threes of numbers")


def _count(values: Any) -> int:
    """The length of a sequence of numbers, 0 for what is none."""
    if not isinstance(values, Sequence | np.ndarray) or not all(is_number(value, _LARGEST) for value in values):
        return 0
    return len(values)
