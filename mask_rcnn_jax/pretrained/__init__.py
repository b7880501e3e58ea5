"""Weights trained elsewhere, under this project's names."""

from mask_rcnn_jax.pretrained.architecture import (
    assumptions,
    check_backbone,
    count_classes,
    describe,
    infer,
    square_side,
)
from mask_rcnn_jax.pretrained.backbones import load_backbone
from mask_rcnn_jax.pretrained.classes import Classes, numbered_classes, published_classes, published_stuff
from mask_rcnn_jax.pretrained.convert import convert, transplant
from mask_rcnn_jax.pretrained.files import read_tensors
from mask_rcnn_jax.pretrained.fit import Report
from mask_rcnn_jax.pretrained.rows import ByName, match, match_kinds
from mask_rcnn_jax.pretrained.sources import TITLES, Source, find_source, licence_of
from mask_rcnn_jax.pretrained.start import contradictions, conventions, load_weights

__all__ = [
    "TITLES",
    "ByName",
    "Classes",
    "Report",
    "Source",
    "assumptions",
    "check_backbone",
    "contradictions",
    "conventions",
    "convert",
    "count_classes",
    "describe",
    "find_source",
    "infer",
    "licence_of",
    "load_backbone",
    "load_weights",
    "match",
    "match_kinds",
    "numbered_classes",
    "published_classes",
    "published_stuff",
    "read_tensors",
    "square_side",
    "transplant",
]
