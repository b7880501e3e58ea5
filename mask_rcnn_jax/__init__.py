"""Mask R-CNN in JAX: train, evaluate, and run instance segmentation on COCO-style data."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mask_rcnn_jax.inference import Detections, Predictor, load_model, use_compile_cache

__version__ = "0.1.0"
__all__ = ["Detections", "Predictor", "load_model", "use_compile_cache"]


def __getattr__(name: str) -> Any:
    # Only when asked for: commands that read and write files start without jax.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mask_rcnn_jax.inference"), name)
