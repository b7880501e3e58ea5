"""Configurations that follow torchvision where it differs from Detectron2, whose conventions are the defaults."""

from dataclasses import replace

from mask_rcnn_jax.models.layers import NormConfig
from mask_rcnn_jax.models.rcnn import MaskRCNNConfig


def torchvision(config: MaskRCNNConfig, *, frozen_norm_epsilon: float = 1e-5) -> MaskRCNNConfig:
    """The same architecture with the conventions of torchvision's `maskrcnn_resnet50_fpn`.

    The published v1 weights need `frozen_norm_epsilon=0`.
    """
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pooler = {"aligned": False, "sampling_ratio": 2, "level_convention": "torchvision"}
    mask = config.mask_head
    bottom_up = replace(config.backbone.bottom_up, stride_in_1x1=False)
    if bottom_up.norm.kind == "frozen_batch_norm":
        bottom_up = replace(bottom_up, norm=NormConfig(epsilon=frozen_norm_epsilon))
    return replace(
        config,
        backbone=replace(config.backbone, bottom_up=bottom_up),
        rpn=replace(
            config.rpn,
            rounded_anchors=True,
            anchor_stride="grid",
            smooth_l1_beta=1 / 9,
            normalizer="sampled",
            post_nms_train=2000,
            min_box_size=1e-3,
        ),
        box_head=replace(
            config.box_head,
            pooler=replace(config.box_head.pooler, **pooler),
            smooth_l1_beta=1 / 9,
            min_box_size=1e-2,
        ),
        mask_head=mask
        and replace(
            mask, pooler=replace(mask.pooler, **pooler), aligned_targets=False, soft_targets=True, paste="torchvision"
        ),
        pixel_mean=tuple(255 * x for x in mean),
        pixel_std=tuple(255 * x for x in std),
        channel_order="rgb",
    )
