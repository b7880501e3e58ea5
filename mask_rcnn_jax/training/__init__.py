"""Training: optimizer, step, checkpoints, loop."""

from mask_rcnn_jax.training.checkpoint import restore_for_inference
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.loop import train
from mask_rcnn_jax.training.optimizer import AdamWConfig, CosineDecay, ScheduleConfig, SGDConfig, StepDecay

__all__ = [
    "AdamWConfig",
    "CosineDecay",
    "ExperimentConfig",
    "SGDConfig",
    "ScheduleConfig",
    "StepDecay",
    "restore_for_inference",
    "train",
]
