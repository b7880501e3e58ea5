"""Weights that a training run may start from: a file of a backbone, or of a whole detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, ResNetConfig, Variables, VGGConfig, ViTConfig
from mask_rcnn_jax.pretrained.architecture import backbone_of, bottom_up_of, find_source, infer, resnet_of
from mask_rcnn_jax.pretrained.classes import published_classes
from mask_rcnn_jax.pretrained.convert import convert, load_resnet, load_vgg, load_vit
from mask_rcnn_jax.pretrained.files import read_tensors
from mask_rcnn_jax.pretrained.rows import ByName, match

Conventions = Mapping[str, object]


def load_weights(
    path: str | Path, config: MaskRCNNConfig, variables: Variables, class_names: Sequence[str]
) -> tuple[Variables, list[str]]:
    """`variables` with what the file holds for them, and what a person should know of it, line by line.

    A detector's predictors are taken by the names of the model's classes. Where it is not known what the file's are,
    they are taken for the model's, if there are as many. Raises UserError naming the file where it cannot be read, or
    holds what does not fit.
    """
    tensors = read_tensors(path)
    source, told = find_source(tensors), []
    try:
        backbone, _ = backbone_of(config)
        if source is None:
            if isinstance(backbone, VGGConfig):
                loaded, report = load_vgg(tensors, config, backbone, variables)
            elif isinstance(backbone, ViTConfig):
                loaded, report = load_vit(tensors, variables)
            else:
                loaded, report = load_resnet(tensors, variables)
            made_with = _of_backbone(tensors)
        else:
            if not isinstance(backbone, ViTConfig):
                resnet_of(config)
            inferred = infer(tensors, source)
            made_with, known = conventions(inferred), published_classes(inferred, source)
            by_name = ByName() if known is None else ByName(match(known.names, class_names))
            loaded, report = convert(tensors, config, source, variables, by_name)
            if known is None and inferred.num_classes == config.num_classes:
                shown = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
                told = [f"  the file does not say what its classes are: they are taken for {shown}, in this order"]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return loaded, [*report.lines(), *told, *(f"  warning: {line}" for line in contradictions(made_with, config))]


def conventions(config: MaskRCNNConfig) -> Conventions:
    """The settings that no shape tells, and without which a backbone's weights mean nothing."""
    backbone, key = bottom_up_of(config)
    settings: dict[str, object] = {
        "model.channel_order": config.channel_order,
        "model.pixel_mean": tuple(round(value, 2) for value in config.pixel_mean),
        "model.pixel_std": tuple(round(value, 2) for value in config.pixel_std),
    }
    if isinstance(backbone, ResNetConfig) and backbone.is_bottleneck:
        settings[f"{key}.stride_in_1x1"] = backbone.stride_in_1x1
    return settings


def contradictions(made_with: Conventions, config: MaskRCNNConfig) -> list[str]:
    """A line for each setting in which the weights and the model differ."""
    settings = conventions(config)
    return [
        f"the weights were made with {key}={_shown(value)}, the model has {_shown(settings[key])}"
        for key, value in made_with.items()
        if settings.get(key, value) != value
    ]


def _of_backbone(tensors: Mapping[str, np.ndarray]) -> Conventions:
    """Return the publisher's conventions. Detectron2's own names do not tell where its weights came from."""
    prefixes = ("model.backbone.", "model.backbone.bottom_up.", "model.trunk.")
    if any(name.startswith("layer1.") for name in tensors):
        return {"model.channel_order": "rgb"} | {f"{prefix}stride_in_1x1": False for prefix in prefixes}
    if "features.0.weight" in tensors or "patch_embed.proj.weight" in tensors:
        return {"model.channel_order": "rgb"}
    if "res2_0_branch2b_w" in tensors:
        middle, in_group, *_ = tensors["res2_0_branch2b_w"].shape
        in_1x1 = middle == in_group and "conv1_gn_s" not in tensors
        return {"model.channel_order": "bgr"} | {f"{prefix}stride_in_1x1": in_1x1 for prefix in prefixes}
    return {}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
