"""Names of VGGs, whose layers torchvision and timm number in a row.

Its classifier begins with two fully connected layers (fc6 and fc7) that Fast R-CNN has as its box head; timm has them
as convolutions. Where there are batch norms, convolutions have a bias beside them, which norms here hold in their mean.
"""

from typing import Any

import numpy as np

from mask_rcnn_jax.models import NormConfig, VGGConfig
from mask_rcnn_jax.models.backbones.vgg import CONVOLUTIONS, STAGES
from mask_rcnn_jax.pretrained.names.backbone import BackboneNames, Conventions, Shapes, Tensors, count
from mask_rcnn_jax.pretrained.names.table import CONV, FIRST_LINEAR, LINEAR, NORM, Layout, Row, Table, same


def _flat_oihw(tensor: np.ndarray, side: int) -> np.ndarray:
    """A kernel as large as the grid, [out, C, H, W], to [H W C, out]."""
    return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])


_FLAT_CONV: Layout = {"weight": ("/kernel", _flat_oihw), "bias": ("/bias", same)}
_CLASSIFIER = (
    Row(r"classifier\.0", "box_head/fc1", FIRST_LINEAR),
    Row(r"classifier\.3", "box_head/fc2", LINEAR),
    Row(r"pre_logits\.fc(\d)", "box_head/fc{0}", _FLAT_CONV),
)


def _table(depth: int, *, has_norms: bool) -> Table:
    rows, number = list(_CLASSIFIER), 0
    for stage, convolutions in zip(STAGES, CONVOLUTIONS[depth], strict=True):
        for place in (f"{stage}/conv{i + 1}" for i in range(convolutions)):
            rows.append(Row(rf"features\.{number}", f"{place}/conv", CONV))
            if has_norms:
                rows.append(Row(rf"features\.{number + 1}", f"{place}/norm", NORM))
            number += 3 if has_norms else 2  # with the rectifier
        number += 1  # with the pool
    return Table(tuple(rows), ignored=r"(classifier\.6|head\.fc)\.\w+|.*\.num_batches_tracked")


class VGGNames(BackboneNames[VGGConfig]):
    kind = VGGConfig
    title = "VGG"
    stages = STAGES
    signs = r"features\.0\.weight"
    beside = "box_head/fc"

    def table(self, tensors: Tensors, backbone: VGGConfig) -> Table:
        """Return the table of the file's depth, or the backbone's where the file has the kernels of no depth."""
        kernels = sum(name.startswith("features.") and tensor.ndim == 4 for name, tensor in tensors.items())
        depth = next((depth for depth, counts in CONVOLUTIONS.items() if sum(counts) == kernels), backbone.depth)
        has_norms = any(name.endswith(".running_mean") for name in tensors)
        return _table(depth, has_norms=has_norms)

    def prepared(self, tensors: Tensors) -> Tensors:
        """Return the tensors with the bias of each convolution before a batch norm taken off the norm's mean."""
        turned = dict(tensors)
        for name, mean in tensors.items():
            layer, _, last = name.rpartition(".")
            if last == "running_mean" and layer.rpartition(".")[2].isdecimal():
                sequence, _, number = layer.rpartition(".")
                bias = turned.pop(f"{sequence}.{int(number) - 1}.bias", None)
                if bias is not None and bias.shape == mean.shape:
                    turned[name] = mean - bias
        return turned

    def made_with(self, tensors: Tensors) -> Conventions:
        return Conventions("rgb")

    def infer(self, shapes: Shapes, norm: NormConfig, source: str | None) -> VGGConfig | None:
        counts = tuple(count(shapes, f"{stage}/conv") for stage in STAGES)
        depths: list[Any] = [depth for depth, of_depth in CONVOLUTIONS.items() if of_depth == counts]
        norm = NormConfig(kind="batch_norm" if "conv1/conv1/norm/scale" in shapes else "none")
        return VGGConfig(depth=depths[0], norm=norm) if depths else None

    def describe(self, backbone: VGGConfig) -> str:
        return f"VGG-{backbone.depth}" + (" with batch norms" if backbone.norm.kind != "none" else "")
