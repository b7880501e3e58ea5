"""Keypoints of instances: what a dataset calls them, and how annotations hold them.

A keypoint is (x, y, visibility) in continuous coordinates, COCO's pixel index plus 0.5. Visibility is 0 where it is not
annotated (then x and y are 0), 1 where it is hidden, 2 where it is seen. `J` keypoints of an instance, 0-based.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mask_rcnn_jax.data.records.entries import LONGEST_SIDE, is_number, is_unicode, shown
from mask_rcnn_jax.errors import UserError


def category_keypoints(
    annotation_file: Path, categories: Sequence[dict[str, Any]]
) -> tuple[tuple[str, ...], list[Any]]:
    """The names of the keypoints that the categories share, and the skeleton as the file has it (pairs from 1).

    Categories may have none. Raises `UserError` where two have different ones, or a name is missing or repeated.
    """
    with_keypoints = [category for category in categories if category.get("keypoints")]
    if not with_keypoints:
        return (), []
    first = with_keypoints[0]
    for category in with_keypoints:
        names = category["keypoints"]
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) and is_unicode(name) for name in names)
            or len({*names}) < len(names)
        ):
            raise UserError(
                f"Category '{category['name']}' in {annotation_file} has the keypoints {shown(names)}; "
                "list a name for each, once."
            )
        if names != first["keypoints"]:
            raise UserError(
                f"Categories '{first['name']}' and '{category['name']}' in {annotation_file} have different keypoints; "
                "a model finds one kind: remove 'keypoints' from all categories but those that share them."
            )
    skeleton = first.get("skeleton")
    return tuple(first["keypoints"]), skeleton if isinstance(skeleton, list) else []


def is_edge(edge: Any, num_keypoints: int) -> bool:
    """Return whether this entry of a skeleton joins two keypoints, counted from 1."""
    return (
        isinstance(edge, list)
        and len(edge) == 2
        and all(type(end) is int and 1 <= end <= num_keypoints for end in edge)
    )


def read_keypoints(flat: Any, num_keypoints: int) -> Float[np.ndarray, "J 3"]:
    """Keypoints of COCO's (x1, y1, v1, x2, ...); ValueError says what is wrong with them."""
    if not isinstance(flat, list) or len(flat) != 3 * num_keypoints:
        length = len(flat) if isinstance(flat, list) else "no"
        raise ValueError(f"{length} values instead of {3 * num_keypoints}")
    if not all(is_number(value) and abs(value) <= LONGEST_SIDE for value in flat):
        raise ValueError("not all values are numbers of pixels")
    keypoints = np.array(flat, np.float64).reshape(-1, 3)
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        raise ValueError("a visibility is not 0, 1 or 2")
    keypoints[:, :2] += 0.5
    return np.where(keypoints[:, 2:] > 0, keypoints, 0).astype(np.float32)
