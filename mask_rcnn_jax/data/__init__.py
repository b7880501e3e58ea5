"""Datasets as NumPy batches: COCO-style directories, synthetic shapes, augmentation, fixed-shape batching."""

from mask_rcnn_jax.data.coco import CocoDataset, Record, load_coco
from mask_rcnn_jax.data.config import CocoConfig, DataConfig, ShapesConfig
from mask_rcnn_jax.data.masks import Segmentation, coverage, to_rle
from mask_rcnn_jax.data.pipeline import (
    BatchIterator,
    describe_left_out,
    eval_batches,
    plan_batches,
    train_batches,
    trainable_records,
)
from mask_rcnn_jax.data.shapes import write_shapes
from mask_rcnn_jax.data.transforms import read_image, resize, resized_size
from mask_rcnn_jax.data.verify import verify_images

__all__ = [
    "BatchIterator",
    "CocoConfig",
    "CocoDataset",
    "DataConfig",
    "Record",
    "Segmentation",
    "ShapesConfig",
    "coverage",
    "describe_left_out",
    "eval_batches",
    "load_coco",
    "plan_batches",
    "read_image",
    "resize",
    "resized_size",
    "to_rle",
    "train_batches",
    "trainable_records",
    "verify_images",
    "write_shapes",
]
