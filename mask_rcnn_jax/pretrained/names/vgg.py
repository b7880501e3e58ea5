"""Names of torchvision's VGGs, which number the layers of the whole network in a row.

Its classifier begins with two fully connected layers (fc6 and fc7) that Fast R-CNN has as its box head. Where there are
batch norms, convolutions have a bias beside them, which norms here hold in their mean.
"""

from collections.abc import Mapping

import numpy as np

from mask_rcnn_jax.models.backbones.vgg import CONVOLUTIONS, STAGES
from mask_rcnn_jax.pretrained.names.table import CONV, FIRST_LINEAR, LINEAR, NORM, Row, Table

_CLASSIFIER = (
    Row(r"classifier\.0", "box_head/fc1", FIRST_LINEAR),
    Row(r"classifier\.3", "box_head/fc2", LINEAR),
)


def table(depth: int, prefix: str, *, has_norms: bool) -> Table:
    """Return the table of the VGG of this depth, whose stages lie here below the path `prefix`."""
    rows, number = list(_CLASSIFIER), 0
    for stage, count in zip(STAGES, CONVOLUTIONS[depth], strict=True):
        for place in (f"{prefix}{stage}/conv{i + 1}" for i in range(count)):
            rows.append(Row(rf"features\.{number}", f"{place}/conv", CONV))
            if has_norms:
                rows.append(Row(rf"features\.{number + 1}", f"{place}/norm", NORM))
            number += 3 if has_norms else 2  # with the rectifier
        number += 1  # with the pool
    return Table(tuple(rows), ignored=r"classifier\.6\.\w+|.*\.num_batches_tracked")


def has_norms(tensors: Mapping[str, np.ndarray]) -> bool:
    """Tell whether a VGG's tensors are those of one with batch norms."""
    return any(name.endswith(".running_mean") for name in tensors)


def without_biases(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
