"""Names of Detectron, whose files are Caffe2's blobs.

Its background is class 0: here the logit moves to the end, and its unused boxes and masks are left out. Norms are a
scale and a shift. The layers of the RPN have the name of the finest level, and serve all.
"""

from collections.abc import Iterable

from mask_rcnn_jax.pretrained.names.resnet import caffe2_rows
from mask_rcnn_jax.pretrained.names.table import (
    Layout,
    Row,
    Table,
    background_last,
    boxes_of_foreground,
    flat_chw_to_hwc,
    iohw_to_hwio,
    masks_of_foreground,
    pointwise_masks_of_foreground,
    same,
    to_hwio,
    transposed,
)

_CONV: Layout = {"w": ("/conv/kernel", to_hwio), "b": ("/conv/bias", same)}
_NORM: Layout = {"s": ("/norm/scale", same), "b": ("/norm/bias", same)}
_LINEAR: Layout = {"w": ("/kernel", transposed), "b": ("/bias", same)}
_FIRST_LINEAR: Layout = {"w": ("/kernel", flat_chw_to_hwc), "b": ("/bias", same)}
_DECONV: Layout = {"w": ("/kernel", iohw_to_hwio), "b": ("/bias", same)}
_CLASS_LOGITS: Layout = {"w": ("/kernel", background_last), "b": ("/bias", background_last)}
_BOX_DELTAS: Layout = {"w": ("/kernel", boxes_of_foreground), "b": ("/bias", boxes_of_foreground)}
_MASK_PREDICTOR: Layout = {"w": ("_kernel", pointwise_masks_of_foreground), "b": ("_bias", masks_of_foreground)}


def table(names: Iterable[str]) -> Table:
    """Return the table of a detector with blobs of these names; without a pyramid its res5 is on RoIs (C4)."""
    has_pyramid = any(name.startswith("fpn_") for name in names)
    resnet = caffe2_rows("backbone/bottom_up/") if has_pyramid else caffe2_rows("backbone/", of_last_stage="")
    return Table((*resnet, *_ROWS), ignored=r".*_momentum|lr|conv1_b|kps_score_[wb]|(fc1000|pred)_[wb]")


_ROWS = (
    Row(r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", "backbone/lateral{0}", _CONV),
    Row(r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?_gn", "backbone/lateral{0}", _NORM),
    Row(r"fpn_res(\d)_\d+_sum", "backbone/output{0}", _CONV),
    Row(r"fpn_res(\d)_\d+_sum_gn", "backbone/output{0}", _NORM),
    Row(r"conv_rpn(?:_fpn2)?", "rpn/conv1", _CONV),
    Row(r"rpn_cls_logits(?:_fpn2)?", "rpn/objectness", _CONV),
    Row(r"rpn_bbox_pred(?:_fpn2)?", "rpn/deltas", _CONV),
    Row(r"head_conv(\d)", "box_head/conv{0}", _CONV),
    Row(r"head_conv(\d)_gn", "box_head/conv{0}", _NORM),
    Row(r"fc6", "box_head/fc1", _FIRST_LINEAR),
    Row(r"fc7", "box_head/fc2", _LINEAR),
    Row(r"cls_score", "box_head/class_logits", _CLASS_LOGITS),
    Row(r"bbox_pred", "box_head/box_deltas", _BOX_DELTAS),
    Row(r"_\[mask\]_fcn(\d)", "mask_head/conv{0}", _CONV),
    Row(r"_\[mask\]_fcn(\d)_gn", "mask_head/conv{0}", _NORM),
    Row(r"conv5_mask", "mask_head/deconv", _DECONV),
    Row(r"mask_fcn_logits", "mask_head/predictor", _MASK_PREDICTOR),
    Row(r"conv_fcn(\d)", "keypoint_head/conv{0}", _CONV),
    Row(r"kps_score_lowres", "keypoint_head/deconv", _DECONV),
)
