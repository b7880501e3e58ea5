"""Checks of entries of COCO results files, which another program may have written."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from mask_rcnn_jax.data.entries import shown

_LARGEST = 2.0**53  # of a coordinate: squares and products stay finite


def check_result(result: Any, category_ids: Sequence[int]) -> None:
    """Check category, score, box and keypoints, the latter two where there are any.

    Raises ValueError with the rest of a sentence that begins with the result's name.
    """
    if not isinstance(result, Mapping):
        raise ValueError(f"is {shown(result)}, not an object")
    if result.get("category_id") not in category_ids:
        raise ValueError(f"has the unknown category_id {shown(result.get('category_id'))}")
    score, box, keypoints = (result.get(key) for key in ("score", "bbox", "keypoints"))
    if not _are_numbers([score]):
        raise ValueError(f"has the score {shown(score)}, which is not a number")
    if "bbox" in result and not (_are_numbers(box) and len(box) == 4):
        raise ValueError(f"has the bbox {shown(box)}, which is not four numbers")
    if "keypoints" in result and not (_are_numbers(keypoints) and len(keypoints) % 3 == 0 < len(keypoints)):
        raise ValueError(f"has the keypoints {shown(keypoints)}, which are not threes of numbers")


def _are_numbers(values: Any) -> bool:
    """Whether this is a sequence of finite numbers, NumPy's too; true and false are none."""
    return isinstance(values, Sequence | np.ndarray) and all(
        isinstance(value, Real) and not isinstance(value, bool | np.bool_) and abs(value) <= _LARGEST
        for value in values
    )
