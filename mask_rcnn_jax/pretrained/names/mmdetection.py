"""Names of MMDetection's Mask R-CNNs with an FPN on a ConvNeXt or a Swin Transformer.

Background is the last class there as here.
"""

from collections.abc import Iterable

from mask_rcnn_jax.pretrained.names import convnext, swin
from mask_rcnn_jax.pretrained.names.table import (
    CONV,
    DECONV,
    FIRST_LINEAR,
    LINEAR,
    MASK_PREDICTOR,
    Row,
    Table,
)


def table(names: Iterable[str]) -> Table:
    """Return the table of a detector with tensors of these names: backbones share some, such as their norms'."""
    is_convnext = any(name.startswith("backbone.downsample_layers.") for name in names)
    backbone = convnext if is_convnext else swin
    # What is left out is computed from the sizes, or is what preprocessing keeps.
    ignored = r".*\.relative_position_index|data_preprocessor\..*|.*\.num_batches_tracked"
    return Table((*backbone.mmdetection_rows(r"backbone\.", "backbone/bottom_up/"), *_ROWS), ignored)


# Levels begin with the first feature, p2.
_ROWS = (
    Row(r"neck\.lateral_convs\.(\d)\.conv", "backbone/lateral{0+2}/conv", CONV),
    Row(r"neck\.fpn_convs\.(\d)\.conv", "backbone/output{0+2}/conv", CONV),
    Row(r"rpn_head\.rpn_conv", "rpn/conv1/conv", CONV),
    Row(r"rpn_head\.rpn_cls", "rpn/objectness/conv", CONV),
    Row(r"rpn_head\.rpn_reg", "rpn/deltas/conv", CONV),
    Row(r"roi_head\.bbox_head\.shared_fcs\.0", "box_head/fc1", FIRST_LINEAR),
    Row(r"roi_head\.bbox_head\.shared_fcs\.(\d)", "box_head/fc{0+1}", LINEAR),
    Row(r"roi_head\.bbox_head\.fc_cls", "box_head/class_logits", LINEAR),
    Row(r"roi_head\.bbox_head\.fc_reg", "box_head/box_deltas", LINEAR),
    Row(r"roi_head\.mask_head\.convs\.(\d)\.conv", "mask_head/conv{0+1}/conv", CONV),
    Row(r"roi_head\.mask_head\.upsample", "mask_head/deconv", DECONV),
    Row(r"roi_head\.mask_head\.conv_logits", "mask_head/predictor", MASK_PREDICTOR),
)
