"""Puts the tensors of a file in the places of a model's variables, or says all that does not fit."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax.models import MaskHeadConfig, MaskRCNNConfig, MLPMaskHeadConfig, Variables, abstract
from mask_rcnn_jax.pretrained.fit import Report, as_before, fit, flat, side_of, with_loaded
from mask_rcnn_jax.pretrained.names.table import Found
from mask_rcnn_jax.pretrained.rows import BY_NUMBER, ByName, reads_classes
from mask_rcnn_jax.pretrained.sources import Source, places

# What depends on the number of classes, or of keypoints.
_PREDICTORS = re.compile(
    r"(box_head|cascade/stage\d)/(class_logits|box_deltas)/\w+|mask_head/(point_head/)?predictor_\w+"
    r"|mask_head/(coarse_head/)?prediction/\w+|mask_head/point_head/fc\d/kernel|keypoint_head/deconv/\w+"
    r"|semantic_head/predictor/\w+"
)
# The rest is proposals and heads, which models differ in.
_ALWAYS_THERE = ("backbone", "res5", "trunk", "box_head", "cascade")


def convert(
    tensors: Mapping[str, np.ndarray],
    config: MaskRCNNConfig,
    source: Source,
    variables: Variables | None = None,
    by_name: ByName = BY_NUMBER,
) -> tuple[Variables, Report]:
    """The variables of a model with the tensors of a detector, named and laid out as `source` does.

    Without `variables` the tensors must be all that the model needs. With them, what the tensors lack may be heads
    and the RPN, and predictors for another number of classes keep the values they have in `variables`; where the
    tensors' classes are known `by_name`, those of every class that is not among them. Keypoints likewise.
    Raises UserError with every missing, unexpected and misshapen tensor.
    """
    expected = flat(variables or abstract(config))
    found, unknown = places(tensors, source)
    if source == "detectron2":
        _complete_statistics(found, expected)
    if variables is not None:
        return _fit_what_there_is(found, unknown, variables, config, by_name)
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    loaded = fit(found, unknown, expected, side_of(config))
    values = {path: jnp.asarray(array, dtype) for path, array in loaded.items()}
    return with_loaded(abstract(config), values), Report(len(loaded))


def transplant(
    weights: Variables, config: MaskRCNNConfig, variables: Variables, by_name: ByName = BY_NUMBER
) -> tuple[Variables, Report]:
    """`variables` of the model with the weights of another one of this project, as `convert` does it."""
    found = {path: Found(path, np.asarray(leaf)) for path, leaf in flat(weights).items()}
    return _fit_what_there_is(found, [], variables, config, by_name)


def _fit_what_there_is(
    found: dict[str, Found],
    unknown: Sequence[str],
    variables: Variables,
    config: MaskRCNNConfig,
    by_name: ByName,
) -> tuple[Variables, Report]:
    expected, side = flat(variables), side_of(config)
    taken = _taken(found, expected, config, by_name)
    found = found | taken
    reset = [path for path in taken if by_name.is_reset(path)] + [
        path for path in found.keys() & expected.keys() if _outputs_differ(found[path], expected[path], path)
    ]
    absent = [path for path in expected if _of_head(path) and _of_head(path) not in map(_of_head, found)]
    unused = [path for path in found if _of_head(path) and _of_head(path) not in map(_of_head, expected)]
    usable = {path: tensor for path, tensor in found.items() if path not in {*reset, *unused}}
    loaded = fit(usable, unknown, expected, side, {*reset, *absent})
    names = [found[path].name for path in unused]
    report = Report(len(loaded), tuple(absent), tuple(sorted(reset)), tuple(names), by_name)
    return with_loaded(variables, as_before(loaded, expected)), report


def _taken(
    found: Mapping[str, Found], expected: Mapping[str, Any], config: MaskRCNNConfig, by_name: ByName
) -> dict[str, Found]:
    """The predictors with a part for each class or keypoint, in the order of the model's names."""
    taken = {}
    for path in found.keys() & expected.keys():
        if _without_classes(config, path):
            continue  # one class and no class have as many
        array = found[path].turned(side_of(config)(path)) if _PREDICTORS.fullmatch(path) else None
        if array is not None and (values := by_name.take(path, array, np.asarray(expected[path]))) is not None:
            taken[path] = Found(found[path].name, values)
    return taken


# --- Paths ------------------------------------------------------------------------------------------------------------


def _without_classes(config: MaskRCNNConfig, path: str) -> bool:
    """Tell whether a predictor of boxes or masks has one output for all classes."""
    mask = config.mask_head
    if path.startswith(("mask_head/predictor_", "mask_head/prediction/")):
        return isinstance(mask, MaskHeadConfig | MLPMaskHeadConfig) and mask.class_agnostic
    return config.box_head.class_agnostic and "/box_deltas/" in path


def _of_head(path: str) -> str | None:
    """The head that a path belongs to, or the RPN, if a model may be without it."""
    head = path.partition("/")[0]
    return None if head in _ALWAYS_THERE else head


def _outputs_differ(tensor: Found, expected: Any, path: str) -> bool:
    array = tensor.turned(1) if _PREDICTORS.fullmatch(path) else None
    if array is None:
        return False
    return array.shape[-1] != expected.shape[-1] or (reads_classes(path) and array.shape[0] != expected.shape[0])


def _beside(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}"


def _complete_statistics(found: dict[str, Found], expected: Mapping[str, Any]) -> None:
    """Complete norms without statistics, which their affine maps hold: mean 0 and variance 1, as in Detectron2."""
    if any(path.endswith("/mean") for path in found):
        return
    for path, scale in list(found.items()):
        mean, variance = _beside(path, "mean"), _beside(path, "var")
        if path.endswith("/scale") and mean in expected:
            found[mean] = Found(f"mean of {scale.name}", np.zeros_like(scale.tensor))
            found[variance] = Found(f"variance of {scale.name}", np.ones_like(scale.tensor))
