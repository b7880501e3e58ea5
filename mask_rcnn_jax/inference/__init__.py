"""From batches of images to the instances found in each, in pixels of the original image."""

from mask_rcnn_jax.inference.batched import DetectFn, predict
from mask_rcnn_jax.inference.checkpoint import Model, load_model
from mask_rcnn_jax.inference.compile_cache import use_compile_cache
from mask_rcnn_jax.inference.images import ImageLike
from mask_rcnn_jax.inference.predictor import Predictor
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.results.masks import encode_masks

__all__ = [
    "DetectFn",
    "Detections",
    "ImageLike",
    "Model",
    "Predictor",
    "encode_masks",
    "load_model",
    "predict",
    "use_compile_cache",
]
