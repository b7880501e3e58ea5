"""Records and what they are made of: entries of files, checked, and segmentations."""

from mask_rcnn_jax.data.records.record import BoxProposals, CocoDataset, Federated, Record, SemanticLabels

__all__ = ["BoxProposals", "CocoDataset", "Federated", "Record", "SemanticLabels"]
