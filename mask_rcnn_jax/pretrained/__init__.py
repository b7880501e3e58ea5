"""Weights trained elsewhere, under this project's names."""

from mask_rcnn_jax.pretrained.resnet import load_resnet

__all__ = ["load_resnet"]
