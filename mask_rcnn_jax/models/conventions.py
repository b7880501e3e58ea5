"""Configurations that follow torchvision where it differs from Detectron2, whose conventions are the defaults."""

from dataclasses import replace

from mask_rcnn_jax.models.backbones.fpn import FPNConfig
from mask_rcnn_jax.models.backbones.resnet import ResNetConfig
from mask_rcnn_jax.models.heads.mask import MaskBranchConfig, MaskHeadConfig
from mask_rcnn_jax.models.heads.mlp_mask import MLPMaskHeadConfig
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.networks import MaskRCNNConfig
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig
from mask_rcnn_jax.models.proposals.base import ProposalsConfig
from mask_rcnn_jax.models.proposals.rpn import RPNConfig


def torchvision(config: MaskRCNNConfig, *, frozen_norm_epsilon: float = 1e-5) -> MaskRCNNConfig:
    """The same architecture with the conventions of torchvision's `maskrcnn_resnet50_fpn`.

    The published v1 weights need `frozen_norm_epsilon=0`.
    """
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    keypoint = config.keypoint_head
    fpn = config.backbone if isinstance(config.backbone, FPNConfig) else None
    bottom_up = fpn.bottom_up if fpn else config.backbone
    if isinstance(bottom_up, ResNetConfig):
        frozen = bottom_up.norm.kind == "frozen_batch_norm"
        norm = NormConfig(epsilon=frozen_norm_epsilon) if frozen else bottom_up.norm
        bottom_up = replace(bottom_up, stride_in_1x1=False, norm=norm)
    return replace(
        config,
        backbone=replace(fpn, bottom_up=bottom_up) if fpn else bottom_up,
        rpn=_rpn(config.rpn),
        box_head=replace(
            config.box_head, pooler=_pooler(config.box_head.pooler), smooth_l1_beta=1 / 9, min_box_size=1e-2
        ),
        mask_head=_mask_head(config.mask_head),
        keypoint_head=keypoint and replace(keypoint, pooler=_pooler(keypoint.pooler), decode="torchvision"),
        pixel_mean=tuple(255 * x for x in mean),
        pixel_std=tuple(255 * x for x in std),
        channel_order="rgb",
    )


def torchvision_v2(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The architecture of torchvision's `maskrcnn_resnet50_fpn_v2`, with its conventions.

    Batch norm throughout, two convolutions in the RPN, four and one fully connected layer in the box head (Li et al.
    2021, https://arxiv.org/abs/2111.11429).
    """
    norm, mask, rpn = NormConfig(kind="batch_norm"), config.mask_head, config.rpn
    backbone = config.backbone
    if not (isinstance(backbone, FPNConfig) and isinstance(backbone.bottom_up, ResNetConfig)):
        raise ValueError("torchvision's v2 models have a feature pyramid on a ResNet")
    return torchvision(
        replace(
            config,
            backbone=replace(backbone, bottom_up=replace(backbone.bottom_up, norm=norm), norm=norm),
            rpn=replace(rpn, num_convs=2) if isinstance(rpn, RPNConfig) else rpn,
            box_head=replace(config.box_head, num_convs=4, num_fcs=1, norm=norm),
            mask_head=replace(mask, norm=norm) if isinstance(mask, MaskHeadConfig) else mask,
        )
    )


def _rpn(rpn: ProposalsConfig) -> ProposalsConfig:
    if not isinstance(rpn, RPNConfig):
        return rpn
    return replace(
        rpn,
        rounded_anchors=True,
        anchor_stride="grid",
        smooth_l1_beta=1 / 9,
        normalizer="sampled",
        post_nms_train=2000,
        min_box_size=1e-3,
    )


def _mask_head(mask: MaskBranchConfig | None) -> MaskBranchConfig | None:
    if not isinstance(mask, MaskHeadConfig | MLPMaskHeadConfig):
        return mask
    return replace(mask, pooler=_pooler(mask.pooler), aligned_targets=False, soft_targets=True, paste="torchvision")


def _pooler(pooler: RoIPoolerConfig) -> RoIPoolerConfig:
    """RoIAlign samples as torchvision's; any other pooler is left as it is but for the levels of RoIs."""
    if isinstance(pooler, PoolerConfig):
        pooler = replace(pooler, aligned=False, sampling_ratio=2)
    return replace(pooler, level_convention="torchvision")
