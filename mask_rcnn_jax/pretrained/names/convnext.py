"""Names of ConvNeXts: torchvision's, timm's, and those of their authors, which MMDetection nearly shares."""

from collections.abc import Iterator

import numpy as np

from mask_rcnn_jax.models import ConvNeXtConfig, NormConfig
from mask_rcnn_jax.models.backbones.convnext import STAGES
from mask_rcnn_jax.pretrained.names.backbone import BackboneNames, Conventions, Shapes, Tensors, count
from mask_rcnn_jax.pretrained.names.table import CONV, LINEAR, NORM, Layout, Row, Table


def _flat(tensor: np.ndarray, side: int) -> np.ndarray:
    return tensor.reshape(-1)


_SCALE: Layout = {"gamma": ("/scale", _flat), "layer_scale": ("/scale", _flat)}
_SIZES = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "T",
    ((3, 3, 27, 3), (96, 192, 384, 768)): "S",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "B",
    ((3, 3, 27, 3), (192, 384, 768, 1536)): "L",
}


def mmdetection_rows(source: str, target: str) -> tuple[Row, ...]:
    """Rows of MMDetection's names, and the authors', that begin as `source` says, below the path `target`."""
    layers = ("(?:depthwise_conv|dwconv)", "norm", "(?:pointwise_conv|pwconv)1", "(?:pointwise_conv|pwconv)2")
    before = rf"{source}downsample_layers\.([123])"
    return (
        Row(rf"{source}downsample_layers\.0\.0", f"{target}stem/conv", CONV),
        Row(rf"{source}downsample_layers\.0\.1", f"{target}stem/norm", NORM),
        Row(rf"{before}\.0", f"{target}stage{{0+1}}/downsample/norm", NORM),
        Row(rf"{before}\.1", f"{target}stage{{0+1}}/downsample/conv", CONV),
        *_block_rows(rf"{source}stages\.(\d)\.(\d+)", f"{target}stage{{0+1}}/block{{1+1}}", layers),
        Row(rf"{source}norm(\d)", f"{target}norm_stage{{0+1}}", NORM),
    )


def _block_rows(block: str, place: str, layers: tuple[str, str, str, str]) -> Iterator[Row]:
    depthwise, norm, expand, contract = layers
    yield Row(rf"{block}\.{depthwise}", f"{place}/depthwise", CONV)
    yield Row(rf"{block}\.{norm}", f"{place}/norm", NORM)
    yield Row(rf"{block}\.{expand}", f"{place}/expand", LINEAR)
    yield Row(rf"{block}\.{contract}", f"{place}/contract", LINEAR)
    yield Row(block, place, _SCALE)


def _torchvision_rows() -> Iterator[Row]:
    yield Row(r"features\.0\.0", "stem/conv", CONV)
    yield Row(r"features\.0\.1", "stem/norm", NORM)
    layers = (r"block\.0", r"block\.2", r"block\.3", r"block\.5")
    for i, name in enumerate(STAGES):
        yield from _block_rows(rf"features\.{2 * i + 1}\.(\d+)", f"{name}/block{{0+1}}", layers)
        if i:
            yield Row(rf"features\.{2 * i}\.0", f"{name}/downsample/norm", NORM)
            yield Row(rf"features\.{2 * i}\.1", f"{name}/downsample/conv", CONV)


def _timm_rows() -> Iterator[Row]:
    yield Row(r"stem\.0", "stem/conv", CONV)
    yield Row(r"stem\.1", "stem/norm", NORM)
    layers = ("conv_dw", "norm", r"mlp\.fc1", r"mlp\.fc2")
    yield from _block_rows(r"stages\.(\d)\.blocks\.(\d+)", "stage{0+1}/block{1+1}", layers)
    yield Row(r"stages\.(\d)\.downsample\.0", "stage{0+1}/downsample/norm", NORM)
    yield Row(r"stages\.(\d)\.downsample\.1", "stage{0+1}/downsample/conv", CONV)


class ConvNeXtNames(BackboneNames[ConvNeXtConfig]):
    kind = ConvNeXtConfig
    title = "ConvNeXt"
    stages = STAGES
    signs = r"features\.1\.0\.layer_scale|stages\.0\.(blocks\.)?0\.gamma"

    def table(self, tensors: Tensors, backbone: ConvNeXtConfig) -> Table:
        rows = (*_torchvision_rows(), *_timm_rows(), *mmdetection_rows("", ""))
        return Table(rows, ignored=r"(classifier|head|norm)\..*")  # the classifier, and the norm before it

    def may_lack(self, path: str, found: object) -> bool:
        return path.startswith("norm_")  # of features, which only detectors have

    def made_with(self, tensors: Tensors) -> Conventions:
        return Conventions("rgb")

    def infer(self, shapes: Shapes, norm: NormConfig, source: str | None) -> ConvNeXtConfig | None:
        kernels = [shapes.get(f"{name}/block1/depthwise/kernel") for name in STAGES]
        if None in kernels:
            return None
        channels = tuple(shape[0] for shape in kernels if shape)
        depths: tuple[int, ...] = tuple(count(shapes, f"{name}/block") for name in STAGES)
        return ConvNeXtConfig(
            depths=depths,  # pyright: ignore[reportArgumentType]
            channels=channels,  # pyright: ignore[reportArgumentType]
            feature_norms=any(path.startswith("norm_") for path in shapes),
        )

    def describe(self, backbone: ConvNeXtConfig) -> str:
        size = _SIZES.get((backbone.depths, backbone.channels))
        if size:
            return f"ConvNeXt-{size}"
        return f"ConvNeXt of {'+'.join(map(str, backbone.depths))} blocks and {backbone.channels[0]} channels"
