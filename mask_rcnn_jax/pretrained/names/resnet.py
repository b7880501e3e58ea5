"""Names of ResNets: torchvision's, which timm shares, Detectron2's, and Caffe2's (the MSRA and FAIR ImageNet weights).

Batch norm may be folded into a convolution of a backbone file, which then has a bias: it becomes the norm's.
"""

from mask_rcnn_jax.pretrained.names.table import NORM, Layout, Row, Table, same, to_hwio

_CONV: Layout = {"weight": ("/conv/kernel", to_hwio), "bias": ("/norm/bias", same)}
_CAFFE2_CONV: Layout = {"w": ("/conv/kernel", to_hwio)}
_CAFFE2_NORM: Layout = {"s": ("/scale", same), "b": ("/bias", same), "rm": ("/mean", same), "riv": ("/var", same)}

DEEP_STEM = r"conv1\.\d+\.\w+"  # three small convolutions instead of one of 7x7, as in timm's resnet50d


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


def _caffe2_rows() -> tuple[Row, ...]:
    rows = [
        Row("conv1", "stem", _CAFFE2_CONV),
        Row("(?:res_)?conv1_[bg]n", "stem/norm", _CAFFE2_NORM),
    ]
    for branch, layer in {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}.items():
        block, place = rf"res(\d)_(\d+)_branch{branch}", f"res{{0}}/block{{1+1}}/{layer}"
        rows += [Row(block, place, _CAFFE2_CONV), Row(f"{block}_[bg]n", f"{place}/norm", _CAFFE2_NORM)]
    return tuple(rows)


TABLE = Table(
    rows=(*torchvision_rows("", ""), *detectron2_rows("", ""), *_caffe2_rows()),
    # Classifiers; a bias of Caffe2's stem that the norm after it makes superfluous; what its training kept.
    ignored=r"(stem\.)?fc\.(weight|bias)|linear\.(weight|bias)|(fc1000|pred)_[wb]|conv1_b|.*_momentum|lr"
    r"|.*\.num_batches_tracked",
)
