"""Names of ResNets: torchvision's, which timm shares, Detectron2's, and Caffe2's (the MSRA and FAIR ImageNet weights).

Batch norm may be folded into a convolution of a backbone file, which then has a bias: it becomes the norm's.
"""

import re
from collections.abc import Container
from typing import Any

import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import NormConfig, ResNetConfig
from mask_rcnn_jax.models.backbones.resnet import BLOCKS, STAGES
from mask_rcnn_jax.pretrained.names.backbone import BackboneNames, Conventions, Shapes, Tensors, count
from mask_rcnn_jax.pretrained.names.table import NORM, Layout, Row, Table, same, to_hwio

_CONV: Layout = {"weight": ("/conv/kernel", to_hwio), "bias": ("/norm/bias", same)}
_CAFFE2_CONV: Layout = {"w": ("/conv/kernel", to_hwio)}
_CAFFE2_NORM: Layout = {"s": ("/scale", same), "b": ("/bias", same), "rm": ("/mean", same), "riv": ("/var", same)}

_DEEP_STEM = r"conv1\.\d+\.\w+"  # three small convolutions instead of one of 7x7, as in timm's resnet50d


def torchvision_rows(source: str, target: str) -> tuple[Row, ...]:
    """Rows of a ResNet whose names begin as the pattern `source` says, below the path `target`."""
    block = rf"{source}layer(\d)\.(\d+)\."
    place = f"{target}res{{0+1}}/block{{1+1}}/"
    return (
        Row(rf"{source}conv1", f"{target}stem", _CONV),
        Row(rf"{source}bn1", f"{target}stem/norm", NORM),
        Row(rf"{block}conv(\d)", f"{place}conv{{2}}", _CONV),
        Row(rf"{block}bn(\d)", f"{place}conv{{2}}/norm", NORM),
        Row(rf"{block}downsample\.0", f"{place}shortcut", _CONV),
        Row(rf"{block}downsample\.1", f"{place}shortcut/norm", NORM),
    )


def detectron2_rows(source: str, target: str) -> tuple[Row, ...]:
    """The same with Detectron2's names."""
    block = rf"{source}res(\d)\.(\d+)\.(conv\d|shortcut)"
    place = f"{target}res{{0}}/block{{1+1}}/{{2}}"
    return (
        Row(rf"{source}stem\.conv1", f"{target}stem", _CONV),
        Row(rf"{source}stem\.conv1\.norm", f"{target}stem/norm", NORM),
        Row(block, place, _CONV),
        Row(rf"{block}\.norm", f"{place}/norm", NORM),
    )


def caffe2_rows(target: str, of_last_stage: str | None = None) -> tuple[Row, ...]:
    """The same with Caffe2's names, which have nothing before them; the last stage may lie elsewhere (C4)."""
    rows = [
        Row("conv1", f"{target}stem", _CAFFE2_CONV),
        Row("(?:res_)?conv1_[bg]n", f"{target}stem/norm", _CAFFE2_NORM),
    ]
    for stages, above in (("5", target if of_last_stage is None else of_last_stage), (r"\d", target)):
        for branch, layer in {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}.items():
            block, place = rf"res({stages})_(\d+)_branch{branch}", f"{above}res{{0}}/block{{1+1}}/{layer}"
            rows += [Row(block, place, _CAFFE2_CONV), Row(f"{block}_[bg]n", f"{place}/norm", _CAFFE2_NORM)]
    return tuple(rows)


def with_statistics(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return Caffe2's tensors with the statistics of batch norms that are affine maps: mean 0 and variance 1."""
    given = dict(tensors)
    if not any(name.endswith("_rm") for name in tensors):
        for name, scale in tensors.items():
            if name.endswith("_bn_s"):
                layer = name.removesuffix("_s")
                given |= {f"{layer}_rm": np.zeros_like(scale), f"{layer}_riv": np.ones_like(scale)}
    return given


_TABLE = Table(
    rows=(*torchvision_rows("", ""), *detectron2_rows("", ""), *caffe2_rows("")),
    # Classifiers; a bias of Caffe2's stem that the norm after it makes superfluous; what its training kept.
    ignored=r"(stem\.)?fc\.(weight|bias)|linear\.(weight|bias)|(fc1000|pred)_[wb]|conv1_b|.*_momentum|lr"
    r"|.*\.num_batches_tracked",
)


class ResNetNames(BackboneNames[ResNetConfig]):
    kind = ResNetConfig
    title = "ResNet"
    stages = STAGES
    signs = r"layer1\.0\.conv1\.weight|res2\.0\.conv1\.weight|res2_0_branch2a_w"

    def table(self, tensors: Tensors, backbone: ResNetConfig) -> Table:
        return _TABLE

    def prepared(self, tensors: Tensors) -> Tensors:
        if any(re.fullmatch(_DEEP_STEM, name) for name in tensors):
            raise UserError(
                "a ResNet with a deep stem, of three convolutions, is not supported; use one with a 7x7 stem"
            )
        return with_statistics(tensors)

    def may_lack(self, path: str, found: Container[str]) -> bool:
        """Tell whether it is not of a norm that is there in part: files may hold a part of a ResNet, and norms may be
        folded into kernels.
        """
        return f"{path.rpartition('/')[0]}/scale" not in found

    def made_with(self, tensors: Tensors) -> Conventions:
        """Detectron2's own names do not tell where its weights came from."""
        if any(name.startswith("layer1.") for name in tensors):
            return Conventions("rgb", {"stride_in_1x1": False})
        if "res2_0_branch2b_w" in tensors:
            middle, in_group, *_ = tensors["res2_0_branch2b_w"].shape
            return Conventions("bgr", {"stride_in_1x1": middle == in_group and "conv1_gn_s" not in tensors})
        return Conventions()

    def infer(self, shapes: Shapes, norm: NormConfig, source: str | None) -> ResNetConfig | None:
        if not all(f"res2/block1/{conv}/conv/kernel" in shapes for conv in ("conv1", "conv2")):
            return None
        is_bottleneck = "res2/block1/conv3/conv/kernel" in shapes
        blocks = tuple(count(shapes, f"{stage}/block") for stage in STAGES)
        depths: list[Any] = [
            depth for depth, counts in BLOCKS.items() if counts == blocks and (depth >= 50) == is_bottleneck
        ]
        if not depths or "stem/conv/kernel" not in shapes:
            raise UserError(f"its backbone has stages of {blocks} blocks, which is no ResNet of this project")
        stem = shapes["stem/conv/kernel"][0]
        last = "conv3" if is_bottleneck else "conv2"
        width = shapes[f"res2/block1/{last}/conv/kernel"][0] // (4 if is_bottleneck else 1)
        middle, in_group, *_ = shapes["res2/block1/conv2/conv/kernel"]
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

    def describe(self, backbone: ResNetConfig) -> str:
        if backbone.groups == 1:
            return f"ResNet-{backbone.depth}"
        in_group = backbone.bottleneck_channels("res2") // backbone.groups
        return f"ResNeXt-{backbone.depth} {backbone.groups}x{in_group}d"

    def traits(self, backbone: ResNetConfig) -> list[str]:
        return [backbone.norm.kind.replace("_", " ")]

    def conventions(self, backbone: ResNetConfig) -> dict[str, bool]:
        return {"stride_in_1x1": backbone.stride_in_1x1} if backbone.is_bottleneck else {}

    def assumed(self, backbone: ResNetConfig, key: str) -> list[str]:
        convolution = "1x1" if backbone.stride_in_1x1 else "3x3"
        return [f"blocks stride in their {convolution} convolutions ({key}.stride_in_1x1)"]
