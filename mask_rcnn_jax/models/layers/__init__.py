"""Layers that several networks are made of."""

from mask_rcnn_jax.models.layers.modules import Conv, ConvNorm, Deconv2x2, Kernel, call, max_pool, over_rois

__all__ = ["Conv", "ConvNorm", "Deconv2x2", "Kernel", "call", "max_pool", "over_rois"]
