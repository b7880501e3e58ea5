"""Maps of a whole image that instances make: the class, and the instance, of each pixel.

Shape letters: `H W` sides of the image.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.results.outputs import label_image


class SemanticMap(NamedTuple):
    """The class and the instance at each pixel; 0 is background."""

    classes: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]  # from 1; 16 bits for more than 255 classes
    instances: UInt16[np.ndarray, "H W"]  # from 1, in the order of the detections


def semantic_map(found: Detections) -> SemanticMap:
    """Return the class and the instance at each pixel, those of the better score where masks overlap.

    Where a model has no masks, boxes stand in for them. Raises UserError for more classes or instances than 16 bits
    number.
    """
    count = len(found.class_names)
    if count > np.iinfo(np.uint16).max:
        raise UserError(f"{count} classes do not fit a 16-bit map of them")
    order = np.argsort(-found.scores, kind="stable")
    instances = np.concatenate([[0], order + 1]).astype(np.uint16)[label_image(found.take(order))]
    narrow = np.uint8 if count <= np.iinfo(np.uint8).max else np.uint16
    return SemanticMap(np.concatenate([[0], found.classes + 1]).astype(narrow)[instances], instances)
