"""From batches of images to the instances found in each, in pixels of the original image."""

from mask_rcnn_jax.inference.batched import DetectFn, predict
from mask_rcnn_jax.inference.checkpoint import Model, load_model
from mask_rcnn_jax.inference.compile_cache import use_compile_cache
from mask_rcnn_jax.inference.images import ImageLike
from mask_rcnn_jax.inference.predictor import Predictor
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.results.masks import encode_masks
from mask_rcnn_jax.inference.results.panoptic import Segment, Stuff, panoptic_map
from mask_rcnn_jax.inference.results.semantic import SemanticMap, semantic_map

__all__ = [
    "DetectFn",
    "Detections",
    "ImageLike",
    "Model",
    "Predictor",
    "Segment",
    "SemanticMap",
    "Stuff",
    "encode_masks",
    "load_model",
    "panoptic_map",
    "predict",
    "semantic_map",
    "use_compile_cache",
]
