"""Annotations in other formats, written as a COCO directory: a reader for each format, and one writer."""

from mask_rcnn_jax.data.convert.cityscapes import read_cityscapes
from mask_rcnn_jax.data.convert.id_masks import read_id_masks
from mask_rcnn_jax.data.convert.labelme import read_labelme
from mask_rcnn_jax.data.convert.source import Case, Source, choose_splits
from mask_rcnn_jax.data.convert.via import read_via
from mask_rcnn_jax.data.convert.writer import Written, write_coco
from mask_rcnn_jax.data.convert.yolo import read_yolo

__all__ = [
    "Case",
    "Source",
    "Written",
    "choose_splits",
    "read_cityscapes",
    "read_id_masks",
    "read_labelme",
    "read_via",
    "read_yolo",
    "write_coco",
]
