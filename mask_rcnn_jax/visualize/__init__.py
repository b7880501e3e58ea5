"""Pictures of annotated and detected instances."""

from mask_rcnn_jax.visualize.augmented import write_augmented
from mask_rcnn_jax.visualize.draw import Instances, draw_instances, side_by_side
from mask_rcnn_jax.visualize.pictures import picture_files, write_pictures

__all__ = ["Instances", "draw_instances", "picture_files", "side_by_side", "write_augmented", "write_pictures"]
