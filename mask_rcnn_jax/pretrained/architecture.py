"""Infer the model of a weights file from its tensors, and for the rest from the conventions of its origin.

Shapes are the file's: OIHW kernels and [out, in] matrices, by their paths here. `C` channels, `K` classes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mask_rcnn_jax import models
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    BackboneConfig,
    FPNConfig,
    GivenProposalsConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PointRendConfig,
    ResNetConfig,
    RPNConfig,
    SemanticHeadConfig,
    SimplePyramidConfig,
    VGGConfig,
    ViTConfig,
    architectures,
)
from mask_rcnn_jax.models.backbones.resnet import BLOCKS, STAGES
from mask_rcnn_jax.pretrained.convert import TABLES, Source
from mask_rcnn_jax.pretrained.names.table import translate
from mask_rcnn_jax.pretrained.vit import assumptions_of, is_vit, vitdet_of

_CLASSES = "box_head/class_logits/bias"  # its size tells their number

Shapes = Mapping[str, tuple[int, ...]]


def find_source(names: Iterable[str]) -> Source | None:
    """Whose detector has tensors of these names; None for anything else, such as a backbone."""
    names = set(names)
    if "roi_heads.box_predictor.cls_score.weight" in names and "backbone.body.conv1.weight" in names:
        return "torchvision"
    prefixes = ("proposal_generator.", "backbone.bottom_up.", "backbone.stem.", "backbone.net.")
    return "detectron2" if any(name.startswith(prefixes) for name in names) else None


def count_classes(tensors: Mapping[str, np.ndarray], source: Source) -> int:
    """Count the classes of the detector with these tensors. Raises UserError where it has no box head."""
    found, _ = translate(tensors, TABLES[source])
    return _shape({path: tensor.tensor.shape for path, tensor in found.items()}, _CLASSES)[0] - 1


def infer(tensors: Mapping[str, np.ndarray], source: Source) -> MaskRCNNConfig:
    """The configuration of the detector with these tensors.

    What they do not tell is taken from the published models: Detectron2's strides are in the 1x1 convolutions, but for
    ResNeXt and group norm, and ResNeXt's pixels have a deviation; torchvision's frozen norms have no epsilon.
    Raises UserError where no configuration has such tensors.
    """
    found, _ = translate(tensors, TABLES[source])
    shapes = {path: tensor.tensor.shape for path, tensor in found.items()}
    trained_norm = any(name.endswith("num_batches_tracked") for name in tensors)
    config = _of_shapes(shapes, trained_norm=trained_norm, may_lack_rpn=source == "detectron2")
    if source == "torchvision":
        return models.torchvision(config, frozen_norm_epsilon=0.0)
    return _with_pixels(config, tensors)


def assumptions(config: MaskRCNNConfig, source: Source) -> list[str]:
    """List what the file does not tell of an inferred configuration, with the setting that changes it."""
    backbone, key = bottom_up_of(config)
    if isinstance(backbone, ViTConfig):
        return assumptions_of(backbone, key, config)
    resnet, key = resnet_of(config)
    if source == "torchvision":
        if resnet.norm.kind != "frozen_batch_norm":
            return []
        return [
            "the frozen norms have no epsilon, which holds for the published weights and what was fine-tuned from them;"
            f" for a model trained from an ImageNet backbone, --set {key}.norm.epsilon=1e-5"
        ]
    convolution = "1x1" if resnet.stride_in_1x1 else "3x3"
    lines = [
        f"blocks stride in their {convolution} convolutions ({key}.stride_in_1x1)",
        f"pixels are BGR, divided by {', '.join(map(str, config.pixel_std[::-1]))} (model.pixel_std, in RGB)",
    ]
    if isinstance(config.rpn, GivenProposalsConfig):
        lines.append("features of RoIs are RoIAlign's, as in the published Fast R-CNN (model.box_head.pooler)")
    return lines


def describe(config: MaskRCNNConfig) -> str:
    """The architecture in a line."""
    given = config.rpn if isinstance(config.rpn, GivenProposalsConfig) else None
    heads = {
        "given proposals": given,
        "cascade": config.cascade,
        "masks": config.mask_head,
        "keypoints": config.keypoint_head,
        "stuff": config.heads or None,
    }
    present = "".join(f", {head}" for head, settings in heads.items() if settings is not None)
    classes = f"{config.num_classes} classes" if config.num_classes > 1 else "one class"
    return f"{_describe_backbone(config)}{present}, {classes}"


def _describe_backbone(config: MaskRCNNConfig) -> str:
    backbone, _ = bottom_up_of(config)
    if isinstance(backbone, ViTConfig):
        return f"ViT with {backbone.depth} blocks of {backbone.channels} channels, simple pyramid, layer norm"
    resnet, _ = resnet_of(config)
    name = f"ResNet-{resnet.depth}"
    if resnet.groups > 1:
        name = f"ResNeXt-{resnet.depth} {resnet.groups}x{resnet.bottleneck_channels('res2') // resnet.groups}d"
    neck = "FPN" if isinstance(config.backbone, FPNConfig) else "C4" if config.res5_on_rois else "DC5"
    return f"{name} {neck}, {resnet.norm.kind.replace('_', ' ')}"


def _of_shapes(shapes: Shapes, *, trained_norm: bool, may_lack_rpn: bool) -> MaskRCNNConfig:
    """The architecture with Detectron2's conventions."""
    classes = _shape(shapes, _CLASSES)[0] - 1
    if is_vit(shapes):
        config, norm = vitdet_of(shapes, classes)
    else:
        norm = _norm(shapes, trained=trained_norm)
        config = _on_resnet(shapes, classes, norm)
    config = _with_heads(config, shapes, norm)
    if may_lack_rpn and not any(path.startswith("rpn/") for path in shapes):
        return replace(config, rpn=GivenProposalsConfig())
    assert isinstance(config.rpn, RPNConfig)
    anchors = len(config.rpn.sizes[0]) * len(config.rpn.ratios)
    if (count := _shape(shapes, "rpn/objectness/conv/bias")[0]) != anchors:
        raise UserError(
            f"its {count} anchors a cell are not the usual {anchors}: their sizes are not in the file; give an"
            " experiment with the model's anchors by --config"
        )
    return config


def _on_resnet(shapes: Shapes, classes: int, norm: NormConfig) -> MaskRCNNConfig:
    """The model with the published heads."""
    has_pyramid = "backbone/lateral2/conv/kernel" in shapes
    resnet = _resnet(shapes, "backbone/bottom_up/" if has_pyramid else "backbone/", norm)
    if has_pyramid:
        channels = shapes["backbone/lateral2/conv/kernel"][0]
        head_norm = norm if "backbone/lateral2/norm/scale" in shapes else NormConfig(kind="none")
        return MaskRCNNConfig(num_classes=classes, backbone=FPNConfig(resnet, channels, head_norm))
    if "res5/block1/conv1/conv/kernel" in shapes:
        return architectures.c4(resnet, classes)
    return architectures.dc5(resnet, classes)


def _norm(shapes: Shapes, *, trained: bool) -> NormConfig:
    """The norm of the backbone. Frozen statistics look like trained ones, but PyTorch counts the latter's batches."""
    everywhere = "backbone/lateral2/norm/scale" in shapes
    if everywhere and "backbone/lateral2/norm/mean" not in shapes:
        return NormConfig(kind="group_norm")
    return NormConfig(kind="batch_norm" if everywhere or trained else "frozen_batch_norm")


def _resnet(shapes: Shapes, prefix: str, norm: NormConfig) -> ResNetConfig:
    is_bottleneck = f"{prefix}res2/block1/conv3/conv/kernel" in shapes
    blocks = tuple(_count(shapes, f"{prefix}{stage}/block", f"{stage}/block") for stage in STAGES)
    depths: list[Any] = [
        depth for depth, counts in BLOCKS.items() if counts == blocks and (depth >= 50) == is_bottleneck
    ]
    if not depths:
        raise UserError(f"its backbone has stages of {blocks} blocks, which is no ResNet of this project")
    stem = _shape(shapes, f"{prefix}stem/conv/kernel")[0]
    last = "conv3" if is_bottleneck else "conv2"
    width = _shape(shapes, f"{prefix}res2/block1/{last}/conv/kernel")[0] // (4 if is_bottleneck else 1)
    middle, in_group, *_ = _shape(shapes, f"{prefix}res2/block1/conv2/conv/kernel")
    groups = middle // in_group
    return ResNetConfig(
        depth=depths[0],
        width=width,
        stem_width=None if stem == width else stem,
        groups=groups,
        width_per_group=in_group if groups > 1 or middle != width else None,
        norm=norm,
        # Those that Detectron2 did not take from the original ResNets stride in the 3x3 convolutions.
        stride_in_1x1=groups == 1 and norm.kind != "group_norm",
    )


def _with_heads(config: MaskRCNNConfig, shapes: Shapes, norm: NormConfig) -> MaskRCNNConfig:
    """The configuration with the heads' layers and widths."""
    plain = NormConfig(kind="none")
    box = replace(
        config.box_head,
        num_convs=_count(shapes, "box_head/conv"),
        num_fcs=_count(shapes, "box_head/fc"),
        norm=norm if "box_head/conv1/norm/scale" in shapes else plain,
    )
    if box.num_convs:
        box = replace(box, conv_channels=shapes["box_head/conv1/conv/kernel"][0])
    if box.num_fcs:
        box = replace(box, fc_channels=shapes["box_head/fc1/kernel"][0])
    config = replace(
        config, rpn=replace(config.rpn, num_convs=_count(shapes, "rpn/conv")), box_head=box, mask_head=None
    )
    if "mask_head/deconv/kernel" in shapes:
        mask = MaskHeadConfig(
            pooler=replace(box.pooler, output_size=14),
            num_convs=_count(shapes, "mask_head/conv"),
            channels=shapes["mask_head/deconv/kernel"][1],
            norm=norm if "mask_head/conv1/norm/scale" in shapes else plain,
            class_agnostic=_shape(shapes, "mask_head/predictor_bias")[0] == 1 and config.num_classes > 1,
        )
        config = replace(config, mask_head=mask)
    elif "mask_head/coarse_head/prediction/kernel" in shapes:
        config = replace(config, mask_head=_point_rend(shapes, config.num_classes))
    if "keypoint_head/deconv/kernel" in shapes:
        config = architectures.keypoints(config)
        channels, keypoints, *_ = shapes["keypoint_head/deconv/kernel"]
        head = replace(
            config.keypoint_head or models.KeypointHeadConfig(),
            num_keypoints=keypoints,
            num_convs=_count(shapes, "keypoint_head/conv"),
            channels=channels,
        )
        config = replace(config, keypoint_head=head, num_classes=shapes[_CLASSES][0] - 1)
    if "semantic_head/predictor/bias" in shapes:
        config = replace(config, heads=(_semantic(shapes),))
    if "cascade/stage2/class_logits/kernel" in shapes:
        config = architectures.cascade(config)
    elif _shape(shapes, "box_head/box_deltas/bias")[0] == 4 and config.num_classes > 1:
        config = replace(config, box_head=replace(config.box_head, class_agnostic=True))
    return config


def _point_rend(shapes: Shapes, num_classes: int) -> PointRendConfig:
    """The mask head, whose pooled grid has the default side."""
    coarse, points = (f"mask_head/{name}_head/" for name in ("coarse", "point"))
    outputs, _ = _shape(shapes, f"{coarse}prediction/kernel")
    return PointRendConfig(
        coarse_channels=_shape(shapes, f"{coarse}reduce_sides/kernel")[0],
        num_coarse_fcs=_count(shapes, f"{coarse}fc"),
        coarse_fc_channels=_shape(shapes, f"{coarse}fc1/kernel")[0],
        coarse_size=math.isqrt(outputs // num_classes),
        num_point_fcs=_count(shapes, f"{points}fc"),
        point_channels=_shape(shapes, f"{points}fc1/kernel")[0],
    )


def _semantic(shapes: Shapes) -> SemanticHeadConfig:
    """The head for stuff; group norm has the usual number of groups."""
    prefix, suffix = "semantic_head/", "_conv1/conv/kernel"
    levels = [path for path in shapes if path.startswith(prefix) and path.endswith(suffix)]
    if not levels:
        raise UserError("its semantic head has no convolutions, so it is no Panoptic FPN that this project knows")
    return SemanticHeadConfig(
        features=tuple(sorted(path.removeprefix(prefix).removesuffix(suffix) for path in levels)),
        num_kinds=_shape(shapes, f"{prefix}predictor/bias")[0],
        channels=shapes[levels[0]][0],
        norm=NormConfig(kind="group_norm" if levels[0].replace("conv/kernel", "norm/scale") in shapes else "none"),
    )


def _with_pixels(config: MaskRCNNConfig, tensors: Mapping[str, np.ndarray]) -> MaskRCNNConfig:
    """The configuration with the normalisation that the file holds (BGR), or else the model zoo's."""
    if "pixel_mean" in tensors and "pixel_std" in tensors:
        order = -1 if config.channel_order == "bgr" else 1
        mean, std = (tuple(tensors[name].ravel()[::order].tolist()) for name in ("pixel_mean", "pixel_std"))
        return replace(config, pixel_mean=mean, pixel_std=std)
    backbone, _ = bottom_up_of(config)
    is_resnext = isinstance(backbone, ResNetConfig) and backbone.groups > 1
    return replace(config, pixel_std=(58.395, 57.12, 57.375)) if is_resnext else config


def resnet_of(config: MaskRCNNConfig) -> tuple[ResNetConfig, str]:
    """The ResNet and its key. Raises `UserError` where the backbone is another one."""
    backbone, key = backbone_of(config)
    if not isinstance(backbone, ResNetConfig):
        raise UserError(f"{key} is a {type(backbone).__name__}, and detectors of other programs are known with ResNets")
    return backbone, key


def backbone_of(config: MaskRCNNConfig) -> tuple[ResNetConfig | VGGConfig | ViTConfig, str]:
    """As `bottom_up_of`. Raises `UserError` where the network has no known weights."""
    backbone, key = bottom_up_of(config)
    if not isinstance(backbone, ResNetConfig | VGGConfig | ViTConfig):
        raise UserError(
            f"weights of other programs are known for ResNets, VGGs and ViTs, and {key} is a {type(backbone).__name__};"
            " start from a run of this one, or set pretrained=none"
        )
    return backbone, key


def bottom_up_of(config: MaskRCNNConfig) -> tuple[BackboneConfig, str]:
    """The backbone below a pyramid, or the network that is applied to RoIs, if there is one, and its key."""
    if config.trunk is not None:
        return config.trunk, "model.trunk"
    if isinstance(config.backbone, FPNConfig | SimplePyramidConfig):
        return config.backbone.bottom_up, "model.backbone.bottom_up"
    return config.backbone, "model.backbone"


def _shape(shapes: Shapes, path: str) -> tuple[int, ...]:
    if path not in shapes:
        raise UserError(f"it has no tensor for {path}, so it is no Faster or Mask R-CNN that this project knows")
    return shapes[path]


def _count(shapes: Shapes, *prefixes: str) -> int:
    """Count the numbered layers whose paths begin so."""
    names = {
        path.removeprefix(prefix).partition("/")[0] for prefix in prefixes for path in shapes if path.startswith(prefix)
    }
    return sum(name.isdigit() for name in names)
