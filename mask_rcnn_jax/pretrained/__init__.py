"""Weights trained elsewhere, under this project's names."""

from mask_rcnn_jax.pretrained.architecture import assumptions, count_classes, describe, find_source, infer
from mask_rcnn_jax.pretrained.classes import Classes, numbered_classes, published_classes, published_stuff
from mask_rcnn_jax.pretrained.convert import Report, Source, convert, load_resnet, transplant
from mask_rcnn_jax.pretrained.files import read_tensors
from mask_rcnn_jax.pretrained.rows import ByName, match
from mask_rcnn_jax.pretrained.start import contradictions, conventions, load_weights
from mask_rcnn_jax.pretrained.vit import square_side

__all__ = [
    "ByName",
    "Classes",
    "Report",
    "Source",
    "assumptions",
    "contradictions",
    "conventions",
    "convert",
    "count_classes",
    "describe",
    "find_source",
    "infer",
    "load_resnet",
    "load_weights",
    "match",
    "numbered_classes",
    "published_classes",
    "published_stuff",
    "read_tensors",
    "square_side",
    "transplant",
]
