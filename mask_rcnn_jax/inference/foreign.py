"""Checks of entries of COCO results files, which another program may have written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask_rcnn_jax.data.entries import shown


def check_result(result: Any, category_ids: Sequence[int]) -> None:
    """Check category, score, box and keypoints, the latter two where there are any.

    Raises ValueError with the rest of a sentence that begins with the result's name.
    """
    if not isinstance(result, Mapping):
        raise ValueError(f"is {shown(result)}, not an object")
    if result.get("category_id") not in category_ids:
        raise ValueError(f"has the unknown category_id {shown(result.get('category_id'))}")
    if _numbers(result, "score").ndim:
        raise ValueError(f"has the score {shown(result['score'])}, which is not one number")
    if "bbox" in result and _numbers(result, "bbox").shape != (4,):
        raise ValueError(f"has the bbox {shown(result['bbox'])}, which is not four numbers")
    if "keypoints" in result:
        keypoints = _numbers(result, "keypoints")
        if keypoints.ndim != 1 or keypoints.size % 3:
            raise ValueError(f"has the keypoints {shown(result['keypoints'])}, which are not threes of numbers")


def _numbers(result: Mapping[str, Any], key: str) -> np.ndarray:
    value = result.get(key)
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array(np.nan)
    if not np.isfinite(numbers).all():
        raise ValueError(f"has the {key} {shown(value)}, which holds what is no finite number")
    return numbers
