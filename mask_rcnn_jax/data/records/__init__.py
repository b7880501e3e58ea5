"""Records and what they are made of: entries of files, checked, and segmentations."""

from mask_rcnn_jax.data.records.record import CocoDataset, Federated, Record

__all__ = ["CocoDataset", "Federated", "Record"]
