"""Layers that several networks are made of."""

from mask_rcnn_jax.models.layers.modules import IN_TURN, Conv, ConvNorm, Deconv2x2, Kernel, call, max_pool, over_rois

__all__ = ["IN_TURN", "Conv", "ConvNorm", "Deconv2x2", "Kernel", "call", "max_pool", "over_rois"]
