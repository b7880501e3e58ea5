"""Datasets as NumPy batches: COCO-style directories, synthetic shapes, augmentation, fixed-shape batching."""

from mask_rcnn_jax.data.augment.transforms import read_image, resize, resized_size
from mask_rcnn_jax.data.batching.pipeline import describe_left_out, eval_batches, train_batches, trainable_records
from mask_rcnn_jax.data.batching.plan import plan_batches, repeat_factors
from mask_rcnn_jax.data.batching.workers import BatchIterator
from mask_rcnn_jax.data.config import ColorJitterConfig, DataConfig, LargeScaleJitterConfig, ProposalFilesConfig
from mask_rcnn_jax.data.proposals.attach import load_split, with_proposals
from mask_rcnn_jax.data.proposals.files import write_proposals
from mask_rcnn_jax.data.records import BoxProposals, CocoDataset, Record
from mask_rcnn_jax.data.records.fingerprint import fingerprint
from mask_rcnn_jax.data.records.masks import Segmentation, coverage, to_rle
from mask_rcnn_jax.data.semantic.attach import check_segments
from mask_rcnn_jax.data.semantic.labels import read_kinds, read_numbers
from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.data.sources.coco import CocoConfig, coco_dataset, load_coco
from mask_rcnn_jax.data.sources.folder import image_folder
from mask_rcnn_jax.data.sources.lvis import LvisConfig
from mask_rcnn_jax.data.sources.mixture import MixtureConfig
from mask_rcnn_jax.data.sources.shapes import ShapesConfig, write_shapes
from mask_rcnn_jax.data.sources.tfds import TfdsConfig
from mask_rcnn_jax.data.sources.tfds_builder import build_tfds
from mask_rcnn_jax.data.verify import leave_out, verify_images

__all__ = [
    "BatchIterator",
    "BoxProposals",
    "CocoConfig",
    "CocoDataset",
    "ColorJitterConfig",
    "DataConfig",
    "LargeScaleJitterConfig",
    "LvisConfig",
    "MixtureConfig",
    "ProposalFilesConfig",
    "Record",
    "Segmentation",
    "ShapesConfig",
    "SourceConfig",
    "TfdsConfig",
    "build_tfds",
    "check_segments",
    "coco_dataset",
    "coverage",
    "describe_left_out",
    "eval_batches",
    "fingerprint",
    "image_folder",
    "leave_out",
    "load_coco",
    "load_split",
    "plan_batches",
    "read_image",
    "read_kinds",
    "read_numbers",
    "repeat_factors",
    "resize",
    "resized_size",
    "to_rle",
    "train_batches",
    "trainable_records",
    "verify_images",
    "with_proposals",
    "write_proposals",
    "write_shapes",
]
