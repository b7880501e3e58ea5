"""Whole inference: from one image to its instances with their masks in the image.

Ours is what `Predictor` runs after it has resized the image: a uint8 array [H, W, 3] on the host is placed on the
device, normalised and run through `models.detect`; the detections are fetched, and each mask is pasted at the image's
size and encoded as an RLE. torchvision's is the call of its model on a float tensor [3, H, W] in 0..1, made
beforehand: it normalises, detects, and pastes the masks' probabilities into float bitmaps of the image, neither
thresholded nor encoded. Neither resizes. Both have the same weights, 1000 proposals and 100 instances, and find the
same.
"""

import functools
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.models import Pair, Size, pair, require
from benchmarks.side_by_side import Row, Sides
from mask_rcnn_jax.inference import Detections, predict
from mask_rcnn_jax.structures import EvalBatch
from tests.conformance import reference, stages
from tests.conformance.rows import Boxes, box_rows, masks_iou, match_boxes, mean_mask_row


def sides(version: str, size: Size, quick: bool) -> Sides:
    models = pair(version, (128, 160), 8) if quick else pair(version, size)
    check(models, exact=not quick)
    (tensor,) = reference.tensors([models.image])

    def ours() -> tuple | None:
        return detect(models).rles

    def theirs(model: nn.Module) -> list:
        with torch.inference_mode():
            return model([tensor])

    return Sides(ours, {form: functools.partial(theirs, model) for form, model in models.formats.items()})


def detect(models: Pair) -> Detections:
    ((_, found),) = predict(models.config, models.variables, [batch(models.image)])
    return found


def batch(image: np.ndarray) -> EvalBatch:
    """One image as `inference.predict` takes it."""
    sizes = np.array([image.shape[:2]], np.int32)
    return EvalBatch(image[None], sizes, sizes, np.zeros(1, int), np.ones(1, bool))


def check(models: Pair, exact: bool = True) -> None:
    """Raises AssertionError unless both find the same; with `exact` also unless there is a trained network's work.

    How far rounding moves a score depends on the weights, the image and the machine, as the two memory formats of
    torchvision show: five times what they differ by is added to the bounds.
    """
    trace = reference.trace(models.model, [models.image])
    (reference_found,), (proposals,) = trace.detections, trace.stages["proposals"][0]
    if exact:
        counts = len(proposals), len(reference_found["boxes"])
        assert counts == (1000, 100), f"{counts[0]} proposals and {counts[1]} instances instead of 1000 and 100"
    found = detect(models)
    ours, expected = Boxes(found.boxes, found.scores, found.classes), stages.reference_boxes(reference_found)
    rows, columns = match_boxes(ours, expected)
    masks = found.masks
    assert masks is not None
    iou = masks_iou(masks[rows], reference_found["masks"].numpy()[columns, 0] > 0.5)
    (of_format,) = reference.trace(models.formats["channels last"], [models.image]).detections
    rounding = box_rows("torchvision", "rounding", [(stages.reference_boxes(of_format), expected)])
    found_rows = box_rows("torchvision", "whole", [(ours, expected)])
    require(replace(a, bound=a.bound + 5 * b.difference) for a, b in zip(found_rows, rounding, strict=True))
    require([mean_mask_row("torchvision", "whole", iou)])


ROWS = [
    Row(f"{version}, {size[0]}x{size[1]}", functools.partial(sides, version, size), target)
    for version, target in (("v1", 0.65), ("v2", 0.75))
    for size in ((800, 1088), (512, 512))
]
