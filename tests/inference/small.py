"""A small model that knows nothing but finds something everywhere, and images for it."""

from dataclasses import replace

import jax
import numpy as np

from mask_rcnn_jax import models
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.inference import Model
from tests.tiny import tiny_model

# One square canvas: every test of a file runs the same program.
DATA = DataConfig(short_side=(64,), short_side_eval=64, max_side=64, canvas=(64, 64))
CLASS_NAMES = ("circle", "triangle", "square", "pentagon", "star", "cross")


def small_model(data: DataConfig = DATA) -> Model:
    base = tiny_model()
    config = replace(base, box_head=replace(base.box_head, score_threshold=0.01))
    return Model(config, data, models.init(config, jax.random.key(0)), CLASS_NAMES, (4, 9, 2, 1, 5, 7), 7)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An RGB image of random squares."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
