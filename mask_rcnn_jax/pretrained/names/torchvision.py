"""Names of torchvision's detectors, in the current versions and in the published files, which are older.

Its background is class 0: here the logit moves to the end, and its unused boxes and masks are left out.
"""

from mask_rcnn_jax.pretrained.names.resnet import torchvision_rows
from mask_rcnn_jax.pretrained.names.table import (
    CONV,
    DECONV,
    FIRST_LINEAR,
    LINEAR,
    NORM,
    Layout,
    Row,
    Table,
    background_last,
    boxes_of_foreground,
    masks_of_foreground,
    pointwise_masks_of_foreground,
)

_CLASS_LOGITS: Layout = {"weight": ("/kernel", background_last), "bias": ("/bias", background_last)}
_BOX_DELTAS: Layout = {"weight": ("/kernel", boxes_of_foreground), "bias": ("/bias", boxes_of_foreground)}
_MASK_PREDICTOR: Layout = {
    "weight": ("_kernel", pointwise_masks_of_foreground),
    "bias": ("_bias", masks_of_foreground),
}

TABLE = Table(
    rows=(
        *torchvision_rows(r"backbone\.body\.", "backbone/bottom_up/"),
        Row(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?", "backbone/lateral{0+2}/conv", CONV),
        Row(r"backbone\.fpn\.inner_blocks\.(\d)\.1", "backbone/lateral{0+2}/norm", NORM),
        Row(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?", "backbone/output{0+2}/conv", CONV),
        Row(r"backbone\.fpn\.layer_blocks\.(\d)\.1", "backbone/output{0+2}/norm", NORM),
        Row(r"rpn\.head\.conv", "rpn/conv1/conv", CONV),
        Row(r"rpn\.head\.conv\.(\d)\.0", "rpn/conv{0+1}/conv", CONV),
        Row(r"rpn\.head\.cls_logits", "rpn/objectness/conv", CONV),
        Row(r"rpn\.head\.bbox_pred", "rpn/deltas/conv", CONV),
        Row(r"roi_heads\.box_head\.fc6", "box_head/fc1", FIRST_LINEAR),
        Row(r"roi_heads\.box_head\.fc7", "box_head/fc2", LINEAR),
        # The v2 models' head is a sequence of convolutions with a norm, a flattening and a linear layer.
        Row(r"roi_heads\.box_head\.(\d)\.0", "box_head/conv{0+1}/conv", CONV),
        Row(r"roi_heads\.box_head\.(\d)\.1", "box_head/conv{0+1}/norm", NORM),
        Row(r"roi_heads\.box_head\.\d", "box_head/fc1", FIRST_LINEAR),
        Row(r"roi_heads\.box_predictor\.cls_score", "box_head/class_logits", _CLASS_LOGITS),
        Row(r"roi_heads\.box_predictor\.bbox_pred", "box_head/box_deltas", _BOX_DELTAS),
        Row(r"roi_heads\.mask_head\.mask_fcn(\d)", "mask_head/conv{0}/conv", CONV),
        Row(r"roi_heads\.mask_head\.(\d)\.0", "mask_head/conv{0+1}/conv", CONV),
        Row(r"roi_heads\.mask_head\.(\d)\.1", "mask_head/conv{0+1}/norm", NORM),
        Row(r"roi_heads\.mask_predictor\.conv5_mask", "mask_head/deconv", DECONV),
        Row(r"roi_heads\.mask_predictor\.mask_fcn_logits", "mask_head/predictor", _MASK_PREDICTOR),
        # Every second module of the sequence is a ReLU.
        *(Row(rf"roi_heads\.keypoint_head\.{2 * i}", f"keypoint_head/conv{i + 1}/conv", CONV) for i in range(16)),
        Row(r"roi_heads\.keypoint_predictor\.kps_score_lowres", "keypoint_head/deconv", DECONV),
    ),
    ignored=r".*\.num_batches_tracked",
)
