"""Weights that a training run may start from: a file of a backbone, or of a whole detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.pretrained.architecture import check_backbone, infer
from mask_rcnn_jax.pretrained.backbones import bottom_up_of, find_names, load_backbone, names_of
from mask_rcnn_jax.pretrained.classes import Classes, published_classes, published_stuff
from mask_rcnn_jax.pretrained.convert import convert
from mask_rcnn_jax.pretrained.files import read_tensors
from mask_rcnn_jax.pretrained.names.backbone import Tensors
from mask_rcnn_jax.pretrained.rows import ByName, match, match_kinds
from mask_rcnn_jax.pretrained.sources import find_source

Conventions = Mapping[str, object]


def load_weights(
    path: str | Path,
    config: MaskRCNNConfig,
    variables: Variables,
    class_names: Sequence[str],
    stuff_names: Sequence[str] = (),
) -> tuple[Variables, list[str]]:
    """`variables` with what the file holds for them, and what a person should know of it, line by line.

    A detector's predictors are taken by the names of the model's classes and kinds of stuff. Where it is not known what
    the file's are, they are taken for the model's, if there are as many. Raises UserError naming the file where it
    cannot be read, or holds what does not fit.
    """
    tensors = read_tensors(path)
    source, told = find_source(tensors), []
    try:
        names_of(config)
        if source is None:
            loaded, report = load_backbone(tensors, config, variables)
            made_with = _of_backbone(tensors, config)
        else:
            inferred = infer(tensors, source)
            check_backbone(tensors, source, config)
            made_with, known = conventions(inferred), published_classes(inferred, source)
            stuff = published_stuff(inferred, source) or Classes((), ())
            kinds = match_kinds(stuff.names, stuff_names)
            by_name = ByName(None if known is None else match(known.names, class_names), kinds=kinds)
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
    names = find_names(backbone)
    of_backbone = {} if names is None else names.conventions(backbone)
    return settings | {f"{key}.{name}": value for name, value in of_backbone.items()}


def contradictions(made_with: Conventions, config: MaskRCNNConfig) -> list[str]:
    """A line for each setting in which the weights and the model differ."""
    settings = conventions(config)
    return [
        f"the weights were made with {key}={_shown(value)}, the model has {_shown(settings[key])}"
        for key, value in made_with.items()
        if settings.get(key, value) != value
    ]


def _of_backbone(tensors: Tensors, config: MaskRCNNConfig) -> Conventions:
    """Return the publisher's conventions of a file of a backbone alone."""
    made_with, (_, key) = names_of(config).made_with(tensors), bottom_up_of(config)
    order = {} if made_with.channel_order is None else {"model.channel_order": made_with.channel_order}
    return order | {f"{key}.{name}": value for name, value in made_with.settings.items()}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
