"""Whose detectors files may hold: how they are told apart, what they call their tensors, and under which licence."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from mask_rcnn_jax.pretrained.names import detectron1, detectron2, mmdetection, torchvision
from mask_rcnn_jax.pretrained.names.resnet import with_statistics
from mask_rcnn_jax.pretrained.names.table import Found, translate

Source = Literal["torchvision", "detectron2", "detectron1", "mmdetection"]

TITLES: Mapping[Source, str] = {
    "torchvision": "torchvision",
    "detectron2": "Detectron2",
    "detectron1": "Detectron",
    "mmdetection": "MMDetection",
}

# What their publishers say of the weights that they trained.
_LICENCES: Mapping[Source, str] = {
    "torchvision": "BSD-3-Clause, with the terms of the data that they were trained on, if they are torchvision's own",
    "detectron2": "CC BY-SA 3.0 if they are of Detectron2's model zoo",
    "detectron1": "CC BY-SA 3.0 if they are of Detectron's model zoo",
    "mmdetection": "Apache-2.0 if they are of MMDetection's model zoo",
}


def licence_of(source: Source) -> str:
    """Return the licence of a detector's weights, as far as names tell: anybody's training leaves the same ones."""
    return f"{_LICENCES[source]}; otherwise unknown, see where you got them"


def find_source(names: Iterable[str]) -> Source | None:
    """Whose detector has tensors of these names; None for anything else, such as a backbone."""
    names = set(names)
    if "roi_heads.box_predictor.cls_score.weight" in names and "backbone.body.conv1.weight" in names:
        return "torchvision"
    if any(re.fullmatch(r"roi_head\.bbox_head\.(\d\.)?fc_cls\.weight", name) for name in names):
        return "mmdetection"
    if "cls_score_w" in names and "bbox_pred_w" in names:
        return "detectron1"
    prefixes = ("proposal_generator.", "backbone.bottom_up.", "backbone.stem.", "backbone.net.")
    return "detectron2" if any(name.startswith(prefixes) for name in names) else None


def places(tensors: Mapping[str, np.ndarray], source: Source) -> tuple[dict[str, Found], list[str]]:
    """The tensors of a detector by their path here, and the names that have none. What is ignored is in neither."""
    match source:
        case "torchvision":
            return translate(tensors, torchvision.TABLE)
        case "detectron2":
            return translate(tensors, detectron2.TABLE)
        case "detectron1":
            return translate(with_statistics(tensors), detectron1.table(tensors))
        case "mmdetection":
            return translate(tensors, mmdetection.table(tensors))
