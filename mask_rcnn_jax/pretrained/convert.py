"""Puts the tensors of a file in the places of a model's variables, or says all that does not fit."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    MaskHeadConfig,
    MaskRCNNConfig,
    MLPMaskHeadConfig,
    PointRendConfig,
    Variables,
    VGGConfig,
    abstract,
)
from mask_rcnn_jax.pretrained.names import detectron2, resnet, torchvision, vgg, vit
from mask_rcnn_jax.pretrained.names.table import Found, Table, translate
from mask_rcnn_jax.pretrained.rows import BY_NUMBER, ByName, listed, reads_classes

Source = Literal["torchvision", "detectron2"]

TABLES: Mapping[str, Table] = {"torchvision": torchvision.TABLE, "detectron2": detectron2.TABLE}

# What depends on the number of classes, or of keypoints.
_PREDICTORS = re.compile(
    r"(box_head|cascade/stage\d)/(class_logits|box_deltas)/\w+|mask_head/(point_head/)?predictor_\w+"
    r"|mask_head/(coarse_head/)?prediction/\w+|mask_head/point_head/fc\d/kernel|keypoint_head/deconv/\w+"
    r"|semantic_head/predictor/\w+"
)
Side = Callable[[str], int]  # of a grid of features, by the path of the layer that has it flattened
_ALWAYS_THERE = (
    "backbone",
    "res5",
    "trunk",
    "box_head",
    "cascade",
)  # the rest is proposals and heads, which models differ in


@dataclass(frozen=True)
class Report:
    """The outcome of a conversion, tensor by tensor. Places that none filled keep their former values."""

    loaded: int
    missing: tuple[str, ...] = ()  # paths that the file has nothing for
    reset: tuple[str, ...] = ()  # predictors for other classes, or for another number of classes or keypoints
    unused: tuple[str, ...] = ()  # tensors of heads, or of stages, that the model has not
    by_name: ByName = BY_NUMBER  # what decided which predictors were kept
    zeros: tuple[str, ...] = ()  # of what is missing, the tables that begin with zeros

    def lines(self) -> list[str]:
        """Return the lines to print."""
        lines = [f"{self.loaded} tensors loaded"]
        of_keypoints = [path for path in self.reset if path.startswith("keypoint_head/")]
        of_classes = [path for path in self.reset if path not in of_keypoints]
        for what, matched, reset in (
            ("classes", self.by_name.classes, of_classes),
            ("keypoints", self.by_name.keypoints, of_keypoints),
        ):
            lines += matched.describe(what) if matched is not None else []
            if reset:
                why = f"another number of {what}" if matched is None else f"other {what}"
                lines.append(f"  of {why}, so reset at random: {listed(_layers(reset))}")
        if drawn := [path for path in self.missing if path not in self.zeros]:
            lines.append(f"  not in it, initialised at random: {listed(_layers(drawn))}")
        if self.zeros:
            lines.append(f"  not in it, left at zero: {listed(self.zeros)}")
        if self.unused:
            lines.append(f"  of heads that the model has not, left out: {listed(self.unused)}")
        return lines


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
    expected = _flat(variables or abstract(config))
    found, unknown = translate(tensors, TABLES[source])
    if source == "detectron2":
        _complete_statistics(found, expected)
    if variables is not None:
        return _fit_what_there_is(found, unknown, variables, config, by_name)
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    loaded = _fit(found, unknown, expected, _side(config))
    return _with(abstract(config), {path: jnp.asarray(array, dtype) for path, array in loaded.items()}), Report(
        len(loaded)
    )


def transplant(
    weights: Variables, config: MaskRCNNConfig, variables: Variables, by_name: ByName = BY_NUMBER
) -> tuple[Variables, Report]:
    """`variables` of the model with the weights of another one of this project, as `convert` does it."""
    found = {path: Found(path, np.asarray(leaf)) for path, leaf in _flat(weights).items()}
    return _fit_what_there_is(found, [], variables, config, by_name)


def load_resnet(tensors: Mapping[str, np.ndarray], variables: Variables) -> tuple[Variables, Report]:
    """`variables` of a detector with the ResNet of its backbone (and C4's res5) taken from ImageNet weights.

    The tensors may be a part of the ResNet, and batch norm may be folded into its kernels; then the scales and
    statistics that are missing are the identity and not reported. Raises UserError, naming every tensor at once, where
    names or shapes do not fit the configured one, or a norm is there in part.
    """
    if any(re.fullmatch(resnet.DEEP_STEM, name) for name in tensors):
        raise UserError("a ResNet with a deep stem, of three convolutions, is not supported; use one with a 7x7 stem")
    expected = _flat(variables)
    prefix = next((path.removesuffix("stem/conv/kernel") for path in expected if path.endswith("stem/conv/kernel")), "")
    found, unknown = translate(tensors, resnet.TABLE)
    if not found:
        raise UserError(f"its tensors have names of no detector and no ResNet that is known: {listed(list(tensors))}")
    # C4 has the last stage beside its backbone.
    found = {path if path in expected and path.startswith("res5/") else prefix + path: x for path, x in found.items()}
    if any(name.endswith("_w") for name in tensors):
        _complete_statistics(found, expected)
    wanted = [path for path in expected if path.startswith((prefix + "stem/", prefix + "res", "res5/"))]
    missing = [path for path in wanted if path not in found and path.endswith(("conv/kernel", "norm/bias"))]
    partial = [path for path in wanted if path not in found and _beside(path, "scale") in found]
    kept = {path for path in expected if path not in partial}
    loaded = _fit(found, unknown, expected, lambda path: 1, kept)
    return _with(variables, _as_before(loaded, expected)), Report(len(loaded), tuple(missing))


def load_vgg(
    tensors: Mapping[str, np.ndarray], config: MaskRCNNConfig, backbone: VGGConfig, variables: Variables
) -> tuple[Variables, Report]:
    """`variables` of a detector on `backbone` with the VGG taken from torchvision's ImageNet weights.

    The classifier's first two layers become those of the box head, where that has layers of their shapes. Raises
    UserError, naming every tensor at once, where names or shapes do not fit the configured VGG.
    """
    expected, side = _flat(variables), _side(config)
    first = "conv1/conv1/conv/kernel"
    prefix = next(path.removesuffix(first) for path in expected if path.endswith(first))
    names = vgg.table(backbone.depth, prefix, has_norms=vgg.has_norms(tensors))
    found, unknown = translate(vgg.without_biases(tensors), names)
    if not any(path.startswith(prefix) for path in found):
        raise UserError(f"its tensors have names of no detector and no VGG that is known: {listed(list(tensors))}")
    built = tuple(f"{prefix}{stage}/" for stage in backbone.stages)
    usable = {
        path: x for path, x in found.items() if path.startswith(built) or _fits(x, expected.get(path), side(path))
    }
    unused = [x.name for path, x in found.items() if path not in usable]
    kept = [path for path in expected if not path.startswith(built)]
    missing = [path for path in expected if path.startswith("box_head/fc") and path not in usable]
    loaded = _fit(usable, unknown, expected, side, kept)
    return _with(variables, _as_before(loaded, expected)), Report(len(loaded), tuple(missing), unused=tuple(unused))


def load_vit(tensors: Mapping[str, np.ndarray], variables: Variables) -> tuple[Variables, Report]:
    """`variables` of a detector on a ViT with the ViT taken from weights of MAE, or of a classifier with its names.

    What those lack are tables of relative positions, which stay as they are. Raises UserError, naming every tensor at
    once, where names or shapes do not fit the configured ViT.
    """
    expected, first = _flat(variables), "/patches/kernel"
    prefix = next(path.removesuffix(first) for path in expected if path.endswith(first))
    found, unknown = translate(tensors, vit.table(prefix))
    if not found:
        raise UserError(f"its tensors have names of no detector and no ViT that is known: {listed(list(tensors))}")
    built = tuple(f"{prefix}/{part}" for part in ("patches/", "positions", "block"))
    kept = [path for path in expected if not path.startswith(built) or "/relative_" in path]
    loaded = _fit(found, unknown, expected, lambda path: 1, kept)
    tables = tuple(path for path in expected if "/relative_" in path and path not in loaded)
    return _with(variables, _as_before(loaded, expected)), Report(len(loaded), missing=tables, zeros=tables)


def _fits(tensor: Found, expected: Any, side: int) -> bool:
    turned = tensor.turned(side)
    return expected is not None and turned is not None and turned.shape == expected.shape


def _fit_what_there_is(
    found: dict[str, Found],
    unknown: Sequence[str],
    variables: Variables,
    config: MaskRCNNConfig,
    by_name: ByName,
) -> tuple[Variables, Report]:
    expected, side = _flat(variables), _side(config)
    taken = _taken(found, expected, config, by_name)
    found = found | taken
    reset = [path for path in taken if by_name.is_reset(path)] + [
        path for path in found.keys() & expected.keys() if _outputs_differ(found[path], expected[path], path)
    ]
    absent = [path for path in expected if _of_head(path) and _of_head(path) not in map(_of_head, found)]
    unused = [path for path in found if _of_head(path) and _of_head(path) not in map(_of_head, expected)]
    usable = {path: tensor for path, tensor in found.items() if path not in {*reset, *unused}}
    loaded = _fit(usable, unknown, expected, side, {*reset, *absent})
    names = [found[path].name for path in unused]
    report = Report(len(loaded), tuple(absent), tuple(sorted(reset)), tuple(names), by_name)
    return _with(variables, _as_before(loaded, expected)), report


def _taken(
    found: Mapping[str, Found], expected: Mapping[str, Any], config: MaskRCNNConfig, by_name: ByName
) -> dict[str, Found]:
    """The predictors with a part for each class or keypoint, in the order of the model's names."""
    taken = {}
    for path in found.keys() & expected.keys():
        if _without_classes(config, path):
            continue  # one class and no class have as many
        array = found[path].turned(_side(config)(path)) if _PREDICTORS.fullmatch(path) else None
        if array is not None and (values := by_name.take(path, array, np.asarray(expected[path]))) is not None:
            taken[path] = Found(found[path].name, values)
    return taken


def _fit(
    found: Mapping[str, Found],
    unknown: Sequence[str],
    expected: Mapping[str, Any],
    side: Side,
    kept: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """The tensors by path, turned and of the expected shapes; only `kept` paths may be missing."""
    missing = sorted(expected.keys() - found.keys() - set(kept))
    unexpected = [*unknown, *(tensor.name for path, tensor in found.items() if path not in expected)]
    loaded, misshapen = {}, []
    for path, tensor in found.items():
        if path not in expected:
            continue
        array, shape = tensor.turned(side(path)), tuple(expected[path].shape)
        if array is None or array.shape != shape:
            turned = tensor.tensor.shape if array is None else array.shape
            misshapen.append(f"{tensor.name}, as {path}, is {turned} and should be {shape}")
        else:
            loaded[path] = array
    lines = [
        f"\n  {len(names)} {what}: {listed(names, '; ' if names is misshapen else ', ')}"
        for names, what in (
            (missing, "missing"),
            (unexpected, "without a place in the model"),
            (misshapen, "of another shape"),
        )
        if names
    ]
    if lines:
        raise UserError(f"the weights do not fit the model; of its {len(expected)} tensors" + "".join(lines))
    return loaded


# --- Paths ------------------------------------------------------------------------------------------------------------


def _without_classes(config: MaskRCNNConfig, path: str) -> bool:
    """Tell whether a predictor of boxes or masks has one output for all classes."""
    mask = config.mask_head
    if path.startswith(("mask_head/predictor_", "mask_head/prediction/")):
        return isinstance(mask, MaskHeadConfig | MLPMaskHeadConfig) and mask.class_agnostic
    return config.box_head.class_agnostic and "/box_deltas/" in path


def _side(config: MaskRCNNConfig) -> Side:
    """The side of the features that the first layer after flattening has, by its path."""

    def of(path: str) -> int:
        if path.startswith("mask_head/coarse_head/") and isinstance(config.mask_head, PointRendConfig):
            return config.mask_head.pooled_size // 2
        return config.inputs.of_rois(config.box_head.pooler)[1]

    return of


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


def _layers(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(re.sub("[/_](kernel|bias)$", "", path) for path in paths))


def _flat(variables: Variables) -> dict[str, Any]:
    """Parameters and buffers by path; no path is in both."""
    leaves = jax.tree_util.tree_leaves_with_path
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for tree in (variables.params, variables.buffers)
        for path, leaf in leaves(tree)
    }


def _as_before(loaded: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {path: jnp.asarray(array, expected[path].dtype) for path, array in loaded.items()}


def _with(variables: Variables, loaded: Mapping[str, Any]) -> Variables:
    def replaced(path: Any, leaf: Any) -> Any:
        return loaded.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    return Variables(
        *(jax.tree_util.tree_map_with_path(replaced, tree) for tree in (variables.params, variables.buffers))
    )
