"""Networks, their losses, and inference, as pure functions of a configuration and its variables."""

from mask_rcnn_jax.models.backbones.base import Backbone, BackboneConfig, Feature, PyramidConfig
from mask_rcnn_jax.models.backbones.convnext import ConvNeXtConfig
from mask_rcnn_jax.models.backbones.fpn import FPNConfig
from mask_rcnn_jax.models.backbones.image import ImageConfig
from mask_rcnn_jax.models.backbones.resnet import ResNetConfig
from mask_rcnn_jax.models.backbones.simple_pyramid import SimplePyramidConfig
from mask_rcnn_jax.models.backbones.swin import SwinConfig
from mask_rcnn_jax.models.backbones.vgg import VGGConfig
from mask_rcnn_jax.models.backbones.vit import ViTConfig
from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.models.conventions import torchvision, torchvision_v2
from mask_rcnn_jax.models.heads.base import Head, HeadConfig
from mask_rcnn_jax.models.heads.box import BoxHeadConfig, SoftNMSConfig
from mask_rcnn_jax.models.heads.cascade import CascadeConfig
from mask_rcnn_jax.models.heads.classification import FederatedConfig, HingeConfig
from mask_rcnn_jax.models.heads.keypoint import KeypointHeadConfig
from mask_rcnn_jax.models.heads.mask import MaskBranchConfig, MaskHeadConfig
from mask_rcnn_jax.models.heads.mlp_mask import MLPMaskHeadConfig
from mask_rcnn_jax.models.heads.point_rend import PointRendConfig
from mask_rcnn_jax.models.heads.semantic import PanopticConfig, SemanticHeadConfig
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.losses import Mean
from mask_rcnn_jax.models.networks import MaskRCNNConfig, Variables, abstract, init, networks
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolConfig, RoIPoolerConfig, WarpConfig
from mask_rcnn_jax.models.proposals.base import ProposalsConfig, ProposalSource
from mask_rcnn_jax.models.proposals.given import GivenProposalsConfig
from mask_rcnn_jax.models.proposals.rpn import RPNConfig
from mask_rcnn_jax.models.rcnn import detect, loss_terms

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BoxHeadConfig",
    "CascadeConfig",
    "Context",
    "ConvNeXtConfig",
    "FPNConfig",
    "Feature",
    "FederatedConfig",
    "GivenProposalsConfig",
    "Head",
    "HeadConfig",
    "HingeConfig",
    "ImageConfig",
    "Inputs",
    "KeypointHeadConfig",
    "Keys",
    "MLPMaskHeadConfig",
    "MaskBranchConfig",
    "MaskHeadConfig",
    "MaskRCNNConfig",
    "Mean",
    "NormConfig",
    "PanopticConfig",
    "PointRendConfig",
    "PoolerConfig",
    "ProposalSource",
    "ProposalsConfig",
    "PyramidConfig",
    "RPNConfig",
    "ResNetConfig",
    "RoIPoolConfig",
    "RoIPoolerConfig",
    "SemanticHeadConfig",
    "SimplePyramidConfig",
    "SoftNMSConfig",
    "SwinConfig",
    "Terms",
    "VGGConfig",
    "Variables",
    "ViTConfig",
    "WarpConfig",
    "abstract",
    "detect",
    "init",
    "loss_terms",
    "networks",
    "torchvision",
    "torchvision_v2",
]
