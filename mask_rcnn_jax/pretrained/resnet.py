"""ImageNet ResNets with torchvision's names (`conv1`, `layer1.0.conv2`, ...), stored as an .npz file.

A convolution may have its batch norm folded in, and then has a `.bias`. Kernels are OIHW there and HWIO here.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import Variables

# torchvision's name of a tensor, and this project's below the ResNet.
_PATTERNS = (
    (r"conv1\.weight", "stem/conv/kernel"),
    (r"conv1\.bias", "stem/norm/bias"),
    (r"bn1\.(\w+)", r"stem/norm/{0}"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", "res{stage}/block{block}/conv{2}/conv/kernel"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.bias", "res{stage}/block{block}/conv{2}/norm/bias"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", "res{stage}/block{block}/conv{2}/norm/{3}"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", "res{stage}/block{block}/shortcut/conv/kernel"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.bias", "res{stage}/block{block}/shortcut/norm/bias"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", "res{stage}/block{block}/shortcut/norm/{2}"),
)
_NORM_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_UNUSED = re.compile(r"fc\.(weight|bias)|.*num_batches_tracked")  # the classifier is not part of a backbone


@dataclass(frozen=True)
class Report:
    """What a file did not hold; those tensors keep their initial values.

    Scales and statistics do not count: where batch norm is folded into the kernels, theirs are the identity.
    """

    loaded: int
    missing: tuple[str, ...]


def load_resnet(path: str | Path, variables: Variables) -> tuple[Variables, Report]:
    """`variables` of a detector with the ResNet below its backbone taken from the file.

    Raises UserError, naming every tensor at once, where the file is no .npz of a ResNet, or where names or shapes do
    not fit the configured one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = dict(file.items())
    except FileNotFoundError:
        raise UserError(f"pretrained={path}: there is no such file") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"pretrained={path} cannot be read as an .npz file: {error}") from None
    targets = dict(_leaves(variables.params)) | dict(_leaves(variables.buffers))
    prefix = next((path[: -len("stem/conv/kernel")] for path in targets if path.endswith("stem/conv/kernel")), None)
    if prefix is None:
        raise UserError(f"pretrained={path} holds a ResNet, and this model has none")
    loaded, problems = {}, []
    for name, tensor in tensors.items():
        target = _target(name)
        if _UNUSED.fullmatch(name):
            continue
        if target is None or prefix + target not in targets:
            problems.append(f"{name} has no place in this model")
            continue
        if target.endswith("conv/kernel"):
            tensor = tensor.transpose(2, 3, 1, 0)
        if tensor.shape != targets[prefix + target].shape:
            problems.append(f"{name} has shape {tensor.shape}, expected {targets[prefix + target].shape}")
        loaded[prefix + target] = jnp.asarray(tensor, jnp.float32)
    if problems:
        raise UserError(f"pretrained={path} does not fit the configured ResNet: {'; '.join(problems)}")
    wanted = [name for name in targets if name.startswith(prefix) and name.endswith(("kernel", "norm/bias"))]
    missing = tuple(name.removeprefix(prefix) for name in wanted if name not in loaded)
    return Variables(_replace(variables.params, loaded), _replace(variables.buffers, loaded)), Report(
        len(loaded), missing
    )


def _target(name: str) -> str | None:
    for pattern, target in _PATTERNS:
        if match := re.fullmatch(pattern, name):
            groups = [_NORM_NAMES.get(group, group) for group in match.groups()]
            numbers = {}
            if name.startswith("layer"):
                numbers = {"stage": int(groups[0]) + 1, "block": int(groups[1]) + 1}
            return target.format(*groups, **numbers)
    return None


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _replace(tree: dict[str, Any], loaded: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        name: _replace(value, loaded, f"{prefix}{name}/")
        if isinstance(value, dict)
        else loaded.get(prefix + name, value)
        for name, value in tree.items()
    }
