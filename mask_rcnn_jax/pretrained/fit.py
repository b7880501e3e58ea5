"""Puts tensors in the places of a model's variables, whatever they come from, or says all that does not fit."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, PointRendConfig, Variables
from mask_rcnn_jax.pretrained.names.table import Found
from mask_rcnn_jax.pretrained.rows import BY_NUMBER, ByName, listed

Side = Callable[[str], int]  # of a grid of features, by the path of the layer that has it flattened


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
        of_kinds = [path for path in self.reset if path.startswith("semantic_head/")]
        of_classes = [path for path in self.reset if path not in {*of_keypoints, *of_kinds}]
        for what, matched, reset in (
            ("classes", self.by_name.classes, of_classes),
            ("keypoints", self.by_name.keypoints, of_keypoints),
            ("kinds of stuff", self.by_name.kinds, of_kinds),
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
            lines.append(f"  of heads and stages that the model has not, left out: {listed(self.unused)}")
        return lines


def fit(
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


def side_of(config: MaskRCNNConfig) -> Side:
    """The side of the features that the first layer after flattening has, by its path."""

    def of(path: str) -> int:
        if path.startswith("mask_head/coarse_head/") and isinstance(config.mask_head, PointRendConfig):
            return config.mask_head.pooled_size // 2
        return config.inputs.of_rois(config.box_head.pooler)[1]

    return of


def flat(variables: Variables) -> dict[str, Any]:
    """Parameters and buffers by path; no path is in both."""
    leaves = jax.tree_util.tree_leaves_with_path
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for tree in (variables.params, variables.buffers)
        for path, leaf in leaves(tree)
    }


def as_before(loaded: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {path: jnp.asarray(array, expected[path].dtype) for path, array in loaded.items()}


def with_loaded(variables: Variables, loaded: Mapping[str, Any]) -> Variables:
    def replaced(path: Any, leaf: Any) -> Any:
        return loaded.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    return Variables(
        *(jax.tree_util.tree_map_with_path(replaced, tree) for tree in (variables.params, variables.buffers))
    )


def _layers(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(re.sub("[/_](kernel|bias)$", "", path) for path in paths))
