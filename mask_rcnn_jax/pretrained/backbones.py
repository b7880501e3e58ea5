"""Backbones whose weights others publish, and a detector that starts from a file of one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import BackboneConfig, MaskRCNNConfig, NormConfig, PyramidConfig, Variables
from mask_rcnn_jax.pretrained.fit import Report, as_before, fit, flat, side_of, with_loaded
from mask_rcnn_jax.pretrained.names.backbone import BackboneNames, Tensors
from mask_rcnn_jax.pretrained.names.convnext import ConvNeXtNames
from mask_rcnn_jax.pretrained.names.resnet import ResNetNames
from mask_rcnn_jax.pretrained.names.swin import SwinNames
from mask_rcnn_jax.pretrained.names.table import Found, translate
from mask_rcnn_jax.pretrained.names.vgg import VGGNames
from mask_rcnn_jax.pretrained.names.vit import ViTNames
from mask_rcnn_jax.pretrained.rows import listed

KNOWN: tuple[BackboneNames[Any], ...] = (ResNetNames(), VGGNames(), ConvNeXtNames(), SwinNames(), ViTNames())


def bottom_up_of(config: MaskRCNNConfig) -> tuple[BackboneConfig, str]:
    """The backbone below a pyramid, or the network that is applied to RoIs, if there is one, and its key."""
    if config.trunk is not None:
        return config.trunk, "model.trunk"
    if isinstance(config.backbone, PyramidConfig):
        return config.backbone.bottom_up, "model.backbone.bottom_up"
    return config.backbone, "model.backbone"


def find_names(backbone: BackboneConfig) -> BackboneNames[Any] | None:
    """Return the names of a backbone's layers elsewhere; None where nobody is known to publish its weights."""
    return next((names for names in KNOWN if isinstance(backbone, names.kind)), None)


def names_of(config: MaskRCNNConfig) -> BackboneNames[Any]:
    """Return those of a detector's backbone. Raises `UserError` where nobody is known to publish its weights."""
    backbone, key = bottom_up_of(config)
    names = find_names(backbone)
    if names is None:
        *others, last = (known.kind.__name__.removesuffix("Config") for known in KNOWN)
        raise UserError(
            f"weights of other programs are known for {', '.join(others)} and {last}, and {key} is a"
            f" {type(backbone).__name__}; start from a run of this one, or set pretrained=none"
        )
    return names


def check_same(inferred: BackboneConfig, config: MaskRCNNConfig) -> None:
    """Raise `UserError` where the backbone of a file is another one than a model's, or of another size."""
    backbone, key = bottom_up_of(config)
    theirs, ours = (
        names.describe(one) if (names := find_names(one)) else type(one).__name__ for one in (inferred, backbone)
    )
    if theirs != ours:
        raise UserError(_another(theirs, key, ours))


def load_backbone(tensors: Tensors, config: MaskRCNNConfig, variables: Variables) -> tuple[Variables, Report]:
    """`variables` of a detector with its backbone (and C4's res5, and VGG's layers of the box head) from ImageNet.

    What the tensors may lack is the backbone's to say: a ResNet may be there in part, and its norms folded into its
    kernels. What is missing and is then not the identity is reported. Raises UserError, naming every tensor at once,
    where names or shapes do not fit the configured backbone.
    """
    backbone, key = bottom_up_of(config)
    names, expected, side = names_of(config), flat(variables), side_of(config)
    tensors = names.prepared(tensors)
    below, unknown = translate(tensors, names.table(tensors, backbone))
    _check_names(names, tensors, below, key)
    if (inferred := _infer(names, below)) is not None:
        check_same(inferred, config)
    prefix = key.removeprefix("model.").replace(".", "/") + "/"
    own = [path for path in expected if path.startswith((prefix, "res5/"))]
    # C4's last stage, and a head's layers, lie beside the backbone and have their whole path in the table.
    found = {path if path in expected else prefix + path: tensor for path, tensor in below.items()}
    unbuilt = _unbuilt(names, found, own, expected, prefix)
    of_heads = (found.keys() & expected.keys()) - set(own)
    unbuilt |= {path for path in of_heads if not _fits(found[path], expected[path], side(path))}
    usable = {path: tensor for path, tensor in found.items() if path not in unbuilt}
    lacking = [path for path in own if path not in found and names.may_lack(path.removeprefix(prefix), below)]
    kept = {*lacking, *(expected.keys() - set(own))}
    loaded = fit(usable, unknown, expected, side, kept)
    begins = {path: names.begins_at(path.removeprefix(prefix)) for path in lacking}
    missing = [path for path in lacking if begins[path] != "identity"]
    zeros = tuple(path for path in lacking if begins[path] == "zero")
    if names.beside is not None:
        missing += [path for path in expected if path.startswith(names.beside) and path not in usable]
    unused = tuple(found[path].name for path in found if path in unbuilt)
    report = Report(len(loaded), tuple(missing), unused=unused, zeros=zeros)
    return with_loaded(variables, as_before(loaded, expected)), report


def _infer(names: BackboneNames[Any], below: Mapping[str, Found]) -> BackboneConfig | None:
    """The configuration of a file of a backbone alone; None of a part, or of a size that there is no name for."""
    try:
        return names.infer({path: found.tensor.shape for path, found in below.items()}, NormConfig(), None)
    except (UserError, ValueError):
        return None


def _check_names(names: BackboneNames[Any], tensors: Tensors, below: Mapping[str, Found], key: str) -> None:
    """Raise `UserError` where the tensors are another backbone's, or nobody's."""
    others = (known for known in KNOWN if any(re.fullmatch(known.signs, name) for name in tensors))
    theirs = next(others, None)
    if theirs not in (names, None):
        raise UserError(_another(theirs.title, key, names.title))
    if not below:
        raise UserError(
            f"its tensors have names of no detector and no {names.title} that is known: {listed(list(tensors))}"
        )


def _fits(tensor: Found, expected: Any, side: int) -> bool:
    turned = tensor.turned(side)
    return turned is not None and turned.shape == expected.shape


def _unbuilt(
    names: BackboneNames[Any], found: Mapping[str, Found], own: Sequence[str], expected: Mapping[str, Any], prefix: str
) -> set[str]:
    """The paths of stages that the model has not built, and of a head's layers that it has not."""
    built = {path.removeprefix(prefix).partition("/")[0] for path in own}
    stages = {*names.stages} - built
    heads = (prefix + names.beside,) if names.beside is not None else ()
    return {
        path
        for path in found.keys() - expected.keys()
        if path.startswith(heads) or path.removeprefix(prefix).partition("/")[0] in stages
    }


def _another(theirs: str, key: str, ours: str) -> str:
    return f"its backbone is a {theirs}, and {key} is a {ours}; give weights of a {ours}, or change the model"
