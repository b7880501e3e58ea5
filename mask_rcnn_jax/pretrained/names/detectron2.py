"""Names of Detectron2's model zoo. Background is the last class there as here."""

from mask_rcnn_jax.pretrained.names import vit
from mask_rcnn_jax.pretrained.names.resnet import detectron2_rows
from mask_rcnn_jax.pretrained.names.table import (
    CONV,
    DECONV,
    FIRST_LINEAR,
    LINEAR,
    MASK_PREDICTOR,
    NORM,
    POINTWISE,
    Row,
    Table,
)


def _box_head(number: str, target: str) -> tuple[Row, ...]:
    """Rows of a box head and its predictor; those of a cascade have a number."""
    head, predictor = rf"roi_heads\.box_head{number}", rf"roi_heads\.box_predictor{number}"
    return (
        Row(rf"{head}\.conv(\d)", f"{target}/conv{{0}}/conv", CONV),
        Row(rf"{head}\.conv(\d)\.norm", f"{target}/conv{{0}}/norm", NORM),
        Row(rf"{head}\.fc1", f"{target}/fc1", FIRST_LINEAR),
        Row(rf"{head}\.fc(\d)", f"{target}/fc{{0}}", LINEAR),
        Row(rf"{predictor}\.cls_score", f"{target}/class_logits", LINEAR),
        Row(rf"{predictor}\.bbox_pred", f"{target}/box_deltas", LINEAR),
    )


# Of PointRend's mask head, which the published files have in two parts of other names.
_COARSE = r"roi_heads\.(?:mask_head\.coarse_head|mask_coarse_head)"
_POINTS = r"roi_heads\.(?:mask_head\.point_head|mask_point_head)"
_POINT_REND = (
    Row(rf"{_COARSE}\.reduce_channel_dim_conv", "mask_head/coarse_head/reduce_channels", CONV),
    Row(rf"{_COARSE}\.reduce_spatial_dim_conv", "mask_head/coarse_head/reduce_sides", CONV),
    Row(
        rf"{_COARSE}\.(?:coarse_mask_)?fc1", "mask_head/coarse_head/fc1", FIRST_LINEAR
    ),  # of a grid as large as the box head's
    Row(rf"{_COARSE}\.(?:coarse_mask_)?(fc\d|prediction)", "mask_head/coarse_head/{0}", LINEAR),
    Row(rf"{_POINTS}\.(fc\d)", "mask_head/point_head/{0}", POINTWISE),
    Row(rf"{_POINTS}\.predictor", "mask_head/point_head/predictor", MASK_PREDICTOR),
)

# Panoptic FPN's: norms and activations have no number of their own, and layers are followed by one that doubles.
_SEMANTIC = tuple(
    Row(rf"sem_seg_head\.(p\d)\.{2 * number}{suffix}", f"semantic_head/{{0}}_conv{number + 1}/{part}", layout)
    for number in range(4)
    for suffix, part, layout in (("", "conv", CONV), (r"\.norm", "norm", NORM))
)

TABLE = Table(
    rows=(
        *detectron2_rows(r"backbone\.bottom_up\.", "backbone/bottom_up/"),
        *detectron2_rows(r"backbone\.", "backbone/"),
        *detectron2_rows(r"roi_heads\.", ""),
        *vit.DETECTRON2_ROWS,
        Row(r"backbone\.fpn_(lateral|output)(\d)", "backbone/{0}{1}/conv", CONV),
        Row(r"backbone\.fpn_(lateral|output)(\d)\.norm", "backbone/{0}{1}/norm", NORM),
        Row(r"proposal_generator\.rpn_head\.conv", "rpn/conv1/conv", CONV),
        Row(r"proposal_generator\.rpn_head\.conv\.conv(\d)", "rpn/conv{0+1}/conv", CONV),
        Row(r"proposal_generator\.rpn_head\.objectness_logits", "rpn/objectness/conv", CONV),
        Row(r"proposal_generator\.rpn_head\.anchor_deltas", "rpn/deltas/conv", CONV),
        *_box_head("", "box_head"),
        *_box_head(r"\.0", "box_head"),
        *_box_head(r"\.1", "cascade/stage2"),
        *_box_head(r"\.2", "cascade/stage3"),
        Row(r"roi_heads\.mask_head\.mask_fcn(\d)", "mask_head/conv{0}/conv", CONV),
        Row(r"roi_heads\.mask_head\.mask_fcn(\d)\.norm", "mask_head/conv{0}/norm", NORM),
        Row(r"roi_heads\.mask_head\.deconv", "mask_head/deconv", DECONV),
        Row(r"roi_heads\.mask_head\.predictor", "mask_head/predictor", MASK_PREDICTOR),
        *_POINT_REND,
        *_SEMANTIC,
        Row(r"sem_seg_head\.predictor", "semantic_head/predictor", CONV),
        Row(r"roi_heads\.keypoint_head\.conv_fcn(\d)", "keypoint_head/conv{0}/conv", CONV),
        Row(r"roi_heads\.keypoint_head\.score_lowres", "keypoint_head/deconv", DECONV),
    ),
    ignored=r"pixel_mean|pixel_std|.*\.anchor_generator\.cell_anchors\.\d|.*\.num_batches_tracked",
)
