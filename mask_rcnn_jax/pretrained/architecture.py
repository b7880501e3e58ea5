"""Infer the model of a weights file from its tensors, and for the rest from the conventions of its origin.

Shapes are the file's: OIHW kernels and [out, in] matrices, by their paths here. `C` channels, `K` classes.
"""

import math
from collections.abc import Mapping
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
    ViTConfig,
    architectures,
)
from mask_rcnn_jax.models.backbones.simple_pyramid import LAYER_NORM
from mask_rcnn_jax.pretrained.backbones import KNOWN, bottom_up_of, check_same, find_names
from mask_rcnn_jax.pretrained.names.backbone import Shapes, count
from mask_rcnn_jax.pretrained.sources import Source, places

_CLASSES = "box_head/class_logits/bias"  # its size tells their number
_IMAGENET_STD = (58.395, 57.12, 57.375)


def count_classes(tensors: Mapping[str, np.ndarray], source: Source) -> int:
    """Count the classes of the detector with these tensors. Raises UserError where it has no box head."""
    return _shape(_shapes(tensors, source), _CLASSES)[0] - 1


def infer(tensors: Mapping[str, np.ndarray], source: Source) -> MaskRCNNConfig:
    """The configuration of the detector with these tensors.

    What they do not tell is taken from the published models: Detectron2's strides are in the 1x1 convolutions, but for
    ResNeXt and group norm, and ResNeXt's pixels have a deviation; torchvision's frozen norms have no epsilon; Detectron
    samples RoIs as torchvision does, and has other means of pixels; MMDetection normalises as torchvision does.
    Raises UserError where no configuration has such tensors.
    """
    shapes = _shapes(tensors, source)
    trained_norm = any(name.endswith("num_batches_tracked") for name in tensors)
    config = _of_shapes(shapes, source, trained_norm=trained_norm)
    match source:
        case "torchvision":
            return models.torchvision(config, frozen_norm_epsilon=0.0)
        case "detectron1":
            return _as_detectron1(config)
        case "mmdetection":
            mean = (123.675, 116.28, 103.53)
            return replace(config, pixel_mean=mean, pixel_std=_IMAGENET_STD, channel_order="rgb")
    return _with_pixels(config, tensors)


def check_backbone(tensors: Mapping[str, np.ndarray], source: Source, config: MaskRCNNConfig) -> None:
    """Raise UserError, in one sentence, where the detector with these tensors has another backbone than a model.

    Where they do not tell what it is, nothing is said.
    """
    if find_names(bottom_up_of(config)[0]) is None:
        return
    try:
        backbone = _backbone(_shapes(tensors, source), NormConfig(), source)
    except UserError:
        return
    check_same(backbone, config)


def assumptions(config: MaskRCNNConfig, source: Source) -> list[str]:
    """List what the file does not tell of an inferred configuration, with the setting that changes it."""
    backbone, key = bottom_up_of(config)
    names = find_names(backbone)
    order, rgb = (1, "") if config.channel_order == "rgb" else (-1, ", in RGB")
    mean, std = (", ".join(map(str, values)) for values in (config.pixel_mean[::order], config.pixel_std[::order]))
    opencv = "images are resized without antialiasing, as OpenCV does it (data.resize)"
    if source == "torchvision":
        if not isinstance(backbone, ResNetConfig) or backbone.norm.kind != "frozen_batch_norm":
            return []
        return [
            "the frozen norms have no epsilon, which holds for the published weights and what was fine-tuned from them;"
            f" for a model trained from an ImageNet backbone, --set {key}.norm.epsilon=1e-5"
        ]
    if source == "mmdetection":
        return ["pixels are RGB, normalised as ImageNet's (model.pixel_mean, model.pixel_std)", opencv]
    lines = names.assumed(backbone, key) if names is not None else []
    if source == "detectron1":
        pixels = f"pixels are BGR, less {mean} (model.pixel_mean, in RGB)"
        return [*lines, pixels, "RoIAlign is not aligned (model.box_head.pooler, model.mask_head.pooler)", opencv]
    lines.append(f"pixels are {config.channel_order.upper()}, divided by {std} (model.pixel_std{rgb})")
    if (side := square_side(config)) is not None:
        lines.append(f"images are padded to squares of {side} (data.canvas)")
    if isinstance(config.rpn, GivenProposalsConfig):
        lines.append("features of RoIs are RoIAlign's, as in the published Fast R-CNN (model.box_head.pooler)")
    return lines


def square_side(config: MaskRCNNConfig) -> int | None:
    """Return the side of the squares that the images of a ViTDet are padded to; None for other models."""
    pyramid = config.backbone
    if isinstance(pyramid, SimplePyramidConfig) and isinstance(pyramid.bottom_up, ViTConfig):
        return -(-pyramid.bottom_up.image_size // 32) * 32
    return None


def describe(config: MaskRCNNConfig) -> str:
    """The architecture in a line."""
    backbone, _ = bottom_up_of(config)
    names = find_names(backbone)
    name = type(backbone).__name__ if names is None else names.describe(backbone)
    neck = " FPN" if isinstance(config.backbone, FPNConfig) else " C4" if config.res5_on_rois else " DC5"
    neck = ", simple pyramid" if isinstance(config.backbone, SimplePyramidConfig) else neck
    given = config.rpn if isinstance(config.rpn, GivenProposalsConfig) else None
    heads = {
        "given proposals": given,
        "cascade": config.cascade,
        "masks": config.mask_head,
        "keypoints": config.keypoint_head,
        "stuff": config.heads or None,
    }
    traits = [] if names is None else names.traits(backbone)
    present = [head for head, settings in heads.items() if settings is not None]
    classes = f"{config.num_classes} classes" if config.num_classes > 1 else "one class"
    return ", ".join((f"{name}{neck}", *traits, *present, classes))


def _shapes(tensors: Mapping[str, np.ndarray], source: Source) -> Shapes:
    found, _ = places(tensors, source)
    return {path: tensor.tensor.shape for path, tensor in found.items()}


def _of_shapes(shapes: Shapes, source: Source, *, trained_norm: bool) -> MaskRCNNConfig:
    """The architecture with Detectron2's conventions."""
    norm = _norm(shapes, trained=trained_norm)
    config = _with_backbone(shapes, _shape(shapes, _CLASSES)[0] - 1, norm, source)
    is_vitdet = isinstance(config.backbone, SimplePyramidConfig)
    config = _with_heads(config, shapes, LAYER_NORM if is_vitdet else norm)
    without_rpn = not any(path.startswith("rpn/") for path in shapes)
    if without_rpn and source in ("detectron2", "detectron1"):
        return replace(config, rpn=GivenProposalsConfig())
    assert isinstance(config.rpn, RPNConfig)
    anchors = len(config.rpn.sizes[0]) * len(config.rpn.ratios)
    if (found := _shape(shapes, "rpn/objectness/conv/bias")[0]) != anchors:
        raise UserError(
            f"its {found} anchors a cell are not the usual {anchors}: their sizes are not in the file; give an"
            " experiment with the model's anchors by --config"
        )
    return config


def _with_backbone(shapes: Shapes, classes: int, norm: NormConfig, source: Source) -> MaskRCNNConfig:
    """The model with the published heads."""
    has_pyramid = "backbone/lateral2/conv/kernel" in shapes
    backbone = _backbone(shapes, norm, source)
    if isinstance(backbone, ViTConfig):
        model, width = architectures.vitdet(backbone, classes), shapes.get("backbone/p4/output/conv/kernel", (256,))[0]
        return replace(model, backbone=SimplePyramidConfig(backbone, channels=width))
    if has_pyramid:
        channels = shapes["backbone/lateral2/conv/kernel"][0]
        head_norm = norm if "backbone/lateral2/norm/scale" in shapes else NormConfig(kind="none")
        return MaskRCNNConfig(num_classes=classes, backbone=FPNConfig(backbone, channels, head_norm))
    if not isinstance(backbone, ResNetConfig):
        raise UserError(f"it has a {type(backbone).__name__} without a pyramid, which this project does not know")
    if "res5/block1/conv1/conv/kernel" in shapes:
        return architectures.c4(backbone, classes)
    return architectures.dc5(backbone, classes)


def _norm(shapes: Shapes, *, trained: bool) -> NormConfig:
    """The norm of the backbone. Frozen statistics look like trained ones, but PyTorch counts the latter's batches."""
    everywhere = "backbone/lateral2/norm/scale" in shapes
    if everywhere and "backbone/lateral2/norm/mean" not in shapes:
        return NormConfig(kind="group_norm")
    return NormConfig(kind="batch_norm" if everywhere or trained else "frozen_batch_norm")


def _backbone(shapes: Shapes, norm: NormConfig, source: Source) -> BackboneConfig:
    is_below = any(path.startswith("backbone/bottom_up/") for path in shapes)
    prefix = "backbone/bottom_up/" if is_below else "backbone/"
    below = {path.removeprefix(prefix): shape for path, shape in shapes.items() if path.startswith((prefix, "res5/"))}
    for names in KNOWN:
        if (backbone := names.infer(below, norm, source)) is not None:
            return backbone
    raise UserError("its backbone is none that this project knows of such detectors, so it cannot be imported")


def _as_detectron1(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The architecture with the conventions of Detectron's configurations."""

    ratio = 2 if isinstance(config.backbone, FPNConfig) else 0

    def sampled(head: Any) -> Any:
        return head and replace(head, pooler=replace(head.pooler, aligned=False, sampling_ratio=ratio))

    rpn = config.rpn
    return replace(
        config,
        rpn=replace(rpn, smooth_l1_beta=1 / 9) if isinstance(rpn, RPNConfig) else rpn,
        box_head=replace(sampled(config.box_head), smooth_l1_beta=1.0),
        mask_head=sampled(config.mask_head),
        keypoint_head=sampled(config.keypoint_head),
        pixel_mean=(122.7717, 115.9465, 102.9801),
    )


def _with_heads(config: MaskRCNNConfig, shapes: Shapes, norm: NormConfig) -> MaskRCNNConfig:
    """The configuration with the heads' layers and widths."""
    plain = NormConfig(kind="none")
    box = replace(
        config.box_head,
        num_convs=count(shapes, "box_head/conv"),
        num_fcs=count(shapes, "box_head/fc"),
        norm=norm if "box_head/conv1/norm/scale" in shapes else plain,
    )
    if box.num_convs:
        box = replace(box, conv_channels=shapes["box_head/conv1/conv/kernel"][0])
    if box.num_fcs:
        box = replace(box, fc_channels=shapes["box_head/fc1/kernel"][0])
    config = replace(config, rpn=replace(config.rpn, num_convs=count(shapes, "rpn/conv")), box_head=box, mask_head=None)
    if "mask_head/deconv/kernel" in shapes:
        mask = MaskHeadConfig(
            pooler=replace(box.pooler, output_size=14),
            num_convs=count(shapes, "mask_head/conv"),
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
            num_convs=count(shapes, "keypoint_head/conv"),
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
        num_coarse_fcs=count(shapes, f"{coarse}fc"),
        coarse_fc_channels=_shape(shapes, f"{coarse}fc1/kernel")[0],
        coarse_size=math.isqrt(outputs // num_classes),
        num_point_fcs=count(shapes, f"{points}fc"),
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
    return replace(config, pixel_std=_IMAGENET_STD) if is_resnext else config


def _shape(shapes: Shapes, path: str) -> tuple[int, ...]:
    if path not in shapes:
        raise UserError(f"it has no tensor for {path}, so it is no Faster or Mask R-CNN that this project knows")
    return shapes[path]
