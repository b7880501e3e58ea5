"""The members of the family besides R50-FPN, which is `MaskRCNNConfig()` itself: Detectron2's model zoo."""

from dataclasses import fields, replace

from mask_rcnn_jax.models.backbones.image import ImageConfig
from mask_rcnn_jax.models.backbones.resnet import ResNetConfig
from mask_rcnn_jax.models.backbones.simple_pyramid import LAYER_NORM, SimplePyramidConfig
from mask_rcnn_jax.models.backbones.vgg import VGGConfig
from mask_rcnn_jax.models.backbones.vit import ViTConfig
from mask_rcnn_jax.models.heads.box import BoxHeadConfig
from mask_rcnn_jax.models.heads.cascade import CascadeConfig
from mask_rcnn_jax.models.heads.keypoint import KeypointHeadConfig
from mask_rcnn_jax.models.heads.mask import MaskHeadConfig
from mask_rcnn_jax.models.heads.point_rend import PointRendConfig
from mask_rcnn_jax.models.heads.semantic import SemanticHeadConfig
from mask_rcnn_jax.models.networks import MaskRCNNConfig
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolConfig, RoIPoolerConfig, WarpConfig
from mask_rcnn_jax.models.proposals.given import GivenProposalsConfig
from mask_rcnn_jax.models.proposals.rpn import RPNConfig


def c4(resnet: ResNetConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """One feature map, res4; the stage res5 is the head of every RoI (Faster R-CNN with ResNet; masks of 14x14)."""
    pooler = PoolerConfig(output_size=14, features=("res4",))
    return MaskRCNNConfig(
        num_classes=num_classes,
        backbone=replace(resnet, out_features=("res4",)),
        rpn=_rpn_on("res4"),
        box_head=BoxHeadConfig(pooler=pooler, num_fcs=0),
        mask_head=MaskHeadConfig(pooler=pooler, num_convs=0),
        res5_on_rois=True,
    )


def dc5(resnet: ResNetConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """One feature map, a res5 that is dilated instead of strided, with the heads of FPN."""
    return c5(replace(resnet, res5_dilation=2), num_classes)


def c5(resnet: ResNetConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """One feature map, res5, whose stride of 32 shows what the rounding of RoIPool costs (Mask R-CNN, table 2d), with
    the heads of FPN.
    """
    features = ("res5",)
    return MaskRCNNConfig(
        num_classes=num_classes,
        backbone=replace(resnet, out_features=features),
        rpn=_rpn_on("res5"),
        box_head=BoxHeadConfig(pooler=PoolerConfig(output_size=7, features=features)),
        mask_head=MaskHeadConfig(pooler=PoolerConfig(output_size=14, features=features)),
    )


def vgg(backbone: VGGConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """One feature map, conv5, RoIPool, and VGG's two layers of 4096 on each RoI, without masks and without dropout
    (Faster R-CNN, with its nine anchors a cell).
    """
    pooler = RoIPoolConfig(output_size=7, features=("conv5",))
    return MaskRCNNConfig(
        num_classes=num_classes,
        backbone=replace(backbone, out_features=("conv5",)),
        rpn=replace(_rpn_on("conv5"), sizes=((128.0, 256.0, 512.0),)),
        box_head=BoxHeadConfig(pooler=pooler, fc_channels=64 * backbone.width),
        mask_head=None,
    )


def cascade(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The model with three box heads in a row, each on the boxes of the one before."""
    return replace(
        config,
        rpn=replace(config.rpn, post_nms_train=2000),
        box_head=replace(config.box_head, class_agnostic=True),
        cascade=CascadeConfig(),
    )


def keypoints(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The model for persons, with keypoints instead of masks."""
    return replace(
        config,
        num_classes=1,
        rpn=replace(config.rpn, post_nms_train=1500),
        box_head=replace(config.box_head, smooth_l1_beta=0.5),
        mask_head=None,
        keypoint_head=KeypointHeadConfig(),
    )


def fast_rcnn(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The model whose proposals come with the images, with RoIPool and without masks (Fast R-CNN).

    Detectron2's published weights are of RoIAlign: take `config`'s pooler for them.
    """
    of_any_pooler = {field.name: getattr(config.box_head.pooler, field.name) for field in fields(RoIPoolerConfig)}
    box_head = replace(config.box_head, pooler=RoIPoolConfig(**of_any_pooler))
    return replace(config, rpn=GivenProposalsConfig(), box_head=box_head, mask_head=None)


def rcnn(network: VGGConfig | ResNetConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """A network of ImageNet's classes, all of it trained, on crops of 224 x 224 around proposals that come with the
    images (R-CNN): VGG with its two layers of 4096, without dropout, or a ResNet.

    As in the paper, 32 of 128 RoIs may be foreground. Classes are a softmax's; SVMs are trained afterwards, see
    `docs/family.md`.
    """
    last, box_head = "res5", BoxHeadConfig(pooler=WarpConfig(), samples=128, nms_iou=0.3, num_fcs=0)
    if isinstance(network, VGGConfig):
        last, box_head = "pool5", replace(box_head, num_fcs=2, fc_channels=64 * network.width)
    return MaskRCNNConfig(
        num_classes=num_classes,
        backbone=ImageConfig(),
        rpn=GivenProposalsConfig(num_test=2000),
        trunk=replace(network, out_features=(last,), freeze_at=0),
        box_head=box_head,
        mask_head=None,
    )


def point_rend(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The model with masks of 224x224 that PointRend makes finer point by point (pointrend_rcnn_R_50_FPN)."""
    return replace(config, mask_head=PointRendConfig())


def vitdet(vit: ViTConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """A plain vision transformer under a simple pyramid, with norms in the heads and two convolutions in the RPN
    (ViTDet). Images are to be padded to squares of `vit.image_size`.
    """
    return MaskRCNNConfig(
        num_classes=num_classes,
        backbone=SimplePyramidConfig(vit),
        rpn=RPNConfig(num_convs=2),
        box_head=BoxHeadConfig(num_convs=4, num_fcs=1, norm=LAYER_NORM),
        mask_head=MaskHeadConfig(norm=LAYER_NORM),
        pixel_std=(58.395, 57.12, 57.375),
        channel_order="rgb",
    )


def panoptic_fpn(config: MaskRCNNConfig, num_stuff: int = 53) -> MaskRCNNConfig:
    """The model with a head for `num_stuff` kinds of stuff on the whole image (panoptic_fpn_R_50)."""
    return replace(config, heads=(*config.heads, SemanticHeadConfig(num_kinds=num_stuff + 1)))


def _rpn_on(feature: str) -> RPNConfig:
    """All sizes of anchors on one map, and as many proposals as five levels would make."""
    return RPNConfig(
        features=(feature,),
        sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
        pre_nms_train=12_000,
        pre_nms_test=6_000,
        post_nms_train=2_000,
    )
