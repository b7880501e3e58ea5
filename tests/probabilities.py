"""Detection whose mask probabilities can be seen: `Detections` hold masks as they are pasted."""

from dataclasses import replace

from mask_rcnn_jax import models

NAME = "mask_probabilities"


def detect(*inputs):
    """As `models.detect`, with the masks of its answer also among the `extras`, which nothing pastes."""
    found = models.detect(*inputs)
    return found if found.masks is None else replace(found, extras=found.extras | {NAME: found.masks})
