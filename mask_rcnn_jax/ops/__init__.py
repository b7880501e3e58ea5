"""Detection operators for one image: pure functions of arrays, `jax.vmap` for a batch.

`boxes` is a module whose functions read best qualified (`boxes.encode`); the rest is named here.
"""

from mask_rcnn_jax.ops import anchors, boxes, keypoints, masks, matching, sampling
from mask_rcnn_jax.ops.anchors import cell_anchors, grid_anchors
from mask_rcnn_jax.ops.keypoints import decode_keypoints, keypoint_targets
from mask_rcnn_jax.ops.masks import PasteConvention, mask_targets, paste_masks
from mask_rcnn_jax.ops.matching import Matches, match, match_boxes
from mask_rcnn_jax.ops.nms import Kept, nms
from mask_rcnn_jax.ops.pooling import points
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid
from mask_rcnn_jax.ops.pooling.roi_align import assign_levels, multilevel_roi_align, roi_align
from mask_rcnn_jax.ops.pooling.roi_pool import multilevel_roi_pool, roi_pool
from mask_rcnn_jax.ops.sampling import Samples, sample
from mask_rcnn_jax.ops.soft_nms import Rescored, soft_nms

__all__ = [
    "Kept",
    "Matches",
    "PasteConvention",
    "Rescored",
    "RoIGrid",
    "Samples",
    "anchors",
    "assign_levels",
    "boxes",
    "cell_anchors",
    "decode_keypoints",
    "grid_anchors",
    "keypoint_targets",
    "keypoints",
    "mask_targets",
    "masks",
    "match",
    "match_boxes",
    "matching",
    "multilevel_roi_align",
    "multilevel_roi_pool",
    "nms",
    "paste_masks",
    "points",
    "roi_align",
    "roi_pool",
    "sample",
    "sampling",
    "soft_nms",
]
