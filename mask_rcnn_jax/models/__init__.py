"""Networks, their losses, and inference, as pure functions of a configuration and its variables."""

from mask_rcnn_jax.models.backbone import Backbone, BackboneConfig, Feature
from mask_rcnn_jax.models.box_head import BoxHeadConfig
from mask_rcnn_jax.models.cascade import CascadeConfig
from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.models.conventions import torchvision, torchvision_v2
from mask_rcnn_jax.models.convnext import ConvNeXtConfig
from mask_rcnn_jax.models.fpn import FPNConfig
from mask_rcnn_jax.models.head import Head, HeadConfig
from mask_rcnn_jax.models.keypoint_head import KeypointHeadConfig
from mask_rcnn_jax.models.losses import Mean
from mask_rcnn_jax.models.mask_head import MaskBranchConfig, MaskHeadConfig
from mask_rcnn_jax.models.networks import MaskRCNNConfig, Variables, abstract, init, networks
from mask_rcnn_jax.models.norms import NormConfig
from mask_rcnn_jax.models.point_rend import PointRendConfig
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolConfig, RoIPoolerConfig
from mask_rcnn_jax.models.proposals import GivenProposalsConfig, ProposalsConfig, ProposalSource
from mask_rcnn_jax.models.rcnn import detect, loss_terms
from mask_rcnn_jax.models.resnet import ResNetConfig
from mask_rcnn_jax.models.rpn import RPNConfig

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BoxHeadConfig",
    "CascadeConfig",
    "Context",
    "ConvNeXtConfig",
    "FPNConfig",
    "Feature",
    "GivenProposalsConfig",
    "Head",
    "HeadConfig",
    "Inputs",
    "KeypointHeadConfig",
    "Keys",
    "MaskBranchConfig",
    "MaskHeadConfig",
    "MaskRCNNConfig",
    "Mean",
    "NormConfig",
    "PointRendConfig",
    "PoolerConfig",
    "ProposalSource",
    "ProposalsConfig",
    "RPNConfig",
    "ResNetConfig",
    "RoIPoolConfig",
    "RoIPoolerConfig",
    "Terms",
    "Variables",
    "abstract",
    "detect",
    "init",
    "loss_terms",
    "networks",
    "torchvision",
    "torchvision_v2",
]
