"""From batches of images to the instances found in each, in pixels of the original image."""

from mask_rcnn_jax.inference.batched import DetectFn, ImageDetections, predict
from mask_rcnn_jax.inference.masks import PasteConvention, encode_masks

__all__ = ["DetectFn", "ImageDetections", "PasteConvention", "encode_masks", "predict"]
