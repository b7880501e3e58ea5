"""torchvision's detectors with random weights that detect something, and what they compute on the way.

Random initialisation leaves features that fade or explode, scores below every threshold, and one class for all. Here
every layer is scaled on real images until its output has the spread that a trained network's has: about a hundred
detections an image, of varied classes, sizes and masks.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import _utils, backbone_utils
from torchvision.ops import FrozenBatchNorm2d

# Threads that share their cores with other work, as tests do, mostly wait for each other.
torch.set_num_threads(1)

NARROWING = 8  # how many times fewer channels the narrow models have
_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def maskrcnn_v1(num_classes: int, **settings: Any) -> nn.Module:
    """`maskrcnn_resnet50_fpn` as its published weights are used: frozen batch norm, stem and first stage untrained."""
    return detection.MaskRCNN(_backbone_v1(), num_classes + 1, **settings)


def fasterrcnn_v1(num_classes: int, **settings: Any) -> nn.Module:
    return detection.FasterRCNN(_backbone_v1(), num_classes + 1, **settings)


def keypointrcnn_v1(num_classes: int, **settings: Any) -> nn.Module:
    return detection.KeypointRCNN(_backbone_v1(), num_classes + 1, **settings)


def maskrcnn_v2(num_classes: int, **settings: Any) -> nn.Module:
    settings |= {"weights": None, "weights_backbone": None, "num_classes": num_classes + 1}
    return detection.maskrcnn_resnet50_fpn_v2(**settings)


def fasterrcnn_v2(num_classes: int, **settings: Any) -> nn.Module:
    settings |= {"weights": None, "weights_backbone": None, "num_classes": num_classes + 1}
    return detection.fasterrcnn_resnet50_fpn_v2(**settings)


def _backbone_v1() -> nn.Module:
    # `maskrcnn_resnet50_fpn` itself freezes batch norm only where it downloads weights.
    return backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )


def narrow(model: nn.Module, times: int = NARROWING) -> nn.Module:
    """The same model with `times` fewer channels in every layer but the image's and the predictors'.

    Widths of these models are multiples of 64; sides of kernels, numbers of classes and of anchors must not be.
    """

    def fewer(size: int) -> int:
        return size // times if size % 64 == 0 else size

    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            smaller = tensor.data.new_zeros([fewer(size) for size in tensor.shape])
            if isinstance(tensor, nn.Parameter):
                setattr(module, name, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
            else:
                setattr(module, name, smaller)
        for name in ("in_channels", "out_channels", "in_features", "out_features", "num_features"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, fewer(getattr(module, name)))
    return model


def set_frozen_norm_epsilon(model: nn.Module, epsilon: float) -> None:
    """Published v1 weights need 0, as torchvision sets it when it loads them."""
    _utils.overwrite_eps(model, epsilon)


@torch.no_grad()
def calibrate(
    model: nn.Module, images: Sequence[np.ndarray], seed: int, spread: float = 1.0, residual: float = 0.3
) -> nn.Module:
    """Draws weights and scales every layer by its output on `images`; the model is in evaluation mode afterwards.

    `spread` multiplies what the convolutions before frozen norms give: small values make small variances. Blocks add
    `residual` to what they pass on, little as trained ones do: otherwise depth amplifies rounding.
    """
    random = torch.Generator().manual_seed(seed)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan_in = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose2d) else module.in_channels
            weight = torch.randn(module.weight.shape, generator=random) / math.sqrt(fan_in)
            if name.startswith("roi_heads.mask"):
                # Masks of shapes, not of noise: the outline is a small part of the area.
                weight = weight.mean((2, 3), keepdim=True) + 0.03 * weight
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.zero_()
            target = _PREDICTORS.get(name.rpartition(".")[2], _KEYPOINT_HEAD if "keypoint_head" in name else _HIDDEN)
            hook = functools.partial(_scale, spread) if module.bias is None else functools.partial(_standardise, target)
            handles.append(module.register_forward_hook(_once(hook)))
        elif isinstance(module, _NORMS):
            strength = residual if name.endswith("bn3") else 1.0
            handles.append(module.register_forward_pre_hook(_once(functools.partial(_normalise, strength, random))))
    model.eval()(tensors(images))
    for handle in handles:
        handle.remove()
    return model


def tensors(images: Sequence[np.ndarray], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """torchvision's input, [3, H, W] in 0..1, from RGB images [H, W, 3] of uint8."""
    return [torch.from_numpy(image.transpose(2, 0, 1).copy()).to(dtype) / 255 for image in images]


@dataclass(frozen=True)
class _Target:
    """What a predictor's outputs look like over all cells and RoIs: each channel's mean and deviation."""

    deviation: float
    mean: float = 0.0
    background: float = 0.0  # the first channel's mean


_PREDICTORS = {
    "cls_logits": _Target(2.0, mean=-2.0),
    "cls_score": _Target(2.0, background=7.0),
    "mask_fcn_logits": _Target(3.0, mean=1.0),
    "kps_score_lowres": _Target(1.0),
    "bbox_pred": _Target(0.3),  # of the RPN; the box head's is told apart by its type
}
_HIDDEN = _Target(1.0)
# Rounding closes and opens some of the many gates in a row, and few keypoints' gradients pass each: most are open.
_KEYPOINT_HEAD = _Target(1.0, mean=1.5)
_BOX_HEAD_DELTAS = _Target(0.5)  # divided by 10 and 5 when they are decoded


def _once(hook: Callable) -> Callable:
    """A hook that acts on the first call alone: the RPN's head, for one, is called level by level."""
    called = False

    def first(*arguments):
        nonlocal called
        if not called:
            called = True
            return hook(*arguments)
        return None

    return first


def _scale(deviation: float, module: nn.Module, _, output: torch.Tensor) -> torch.Tensor:
    factor = deviation / output.std()
    module.weight.mul_(factor)
    return output * factor


def _standardise(target: _Target, module: nn.Module, _, output: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Linear) and target is _PREDICTORS["bbox_pred"]:
        target = _BOX_HEAD_DELTAS
    axes, shape = (0, 2, 3)[: output.ndim - 1], (-1,) + (1,) * (output.ndim - 2)
    mean = torch.full((output.shape[1],), target.mean)
    mean[0] += target.background
    factor = target.deviation / output.std(axes)
    shift = mean - output.mean(axes) * factor
    channels = (1, -1, 1, 1) if isinstance(module, nn.ConvTranspose2d) else (-1,) + (1,) * (module.weight.ndim - 1)
    module.weight.mul_(factor.view(channels))
    module.bias.copy_(shift)
    return output * factor.view(shape) + shift.view(shape)


def _normalise(strength: float, random: torch.Generator, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    (x,) = inputs
    module.running_mean.copy_(x.mean((0, 2, 3)))
    module.running_var.copy_(x.var((0, 2, 3)))
    module.weight.copy_(strength * (0.5 + torch.rand(module.weight.shape, generator=random)))
    module.bias.copy_(strength * 0.3 * torch.randn(module.bias.shape, generator=random))


@dataclass
class Trace:
    """What the reference computes on a batch, stage by stage, as torchvision lays it out."""

    detections: list[dict[str, torch.Tensor]] = field(default_factory=list)  # original pixels, masks pasted
    stages: dict[str, Any] = field(default_factory=dict)  # by module: its output


_STAGES = {  # a stage and the module whose output it is
    "input": "transform",
    "features": "backbone",
    "rpn": "rpn.head",
    "box_features": "roi_heads.box_roi_pool",
    "box_outputs": "roi_heads.box_predictor",
    "mask_features": "roi_heads.mask_roi_pool",
    "mask_logits": "roi_heads.mask_predictor",
    "keypoint_features": "roi_heads.keypoint_roi_pool",
    "keypoint_logits": "roi_heads.keypoint_predictor",
    "heads": "roi_heads",
}


@torch.no_grad()
def trace(model: nn.Module, images: Sequence[np.ndarray]) -> Trace:
    """Runs the model on `images` and notes what its parts give."""
    result, handles = Trace(), []
    for stage, name in _STAGES.items():
        module = functools.reduce(lambda parent, part: getattr(parent, part, None), name.split("."), model)
        if module is not None:
            hook = functools.partial(_note, result.stages, stage)
            handles.append(module.register_forward_hook(hook))
    filter_proposals = model.rpn.filter_proposals

    def noted(*arguments):
        result.stages["proposals"] = filter_proposals(*arguments)
        return result.stages["proposals"]

    model.rpn.filter_proposals = noted
    try:
        result.detections = model(tensors(images))
    finally:
        del model.rpn.filter_proposals
        for handle in handles:
            handle.remove()
    return result


def _note(stages: dict[str, Any], stage: str, module: nn.Module, inputs: Any, output: Any) -> None:
    # Detections are scaled in place afterwards.
    stages[stage] = [dict(image) for image in output[0]] if stage == "heads" else output


@contextmanager
def lowest_indices() -> Iterator[None]:
    """Samplers that take the candidates of the lowest indices instead of random ones."""
    original = torch.randperm
    torch.randperm = lambda count, **settings: torch.arange(count, **settings)
    try:
        yield
    finally:
        torch.randperm = original
