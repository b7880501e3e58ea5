"""Mask R-CNN, ResNet-101-FPN, on COCO 2017, 3x schedule: Detectron2's mask_rcnn_R_101_FPN_3x.

    mask-rcnn train --config coco_r101_fpn_3x --workdir runs/coco_r101_fpn_3x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/resnet101.npz

`coco_r50_fpn_1x` with a deeper backbone and three times the schedule. `pretrained` is torchvision's ImageNet ResNet-101
as an .npz file of its state dict.

Detectron2 publishes 42.9 box AP and 38.6 mask AP for this recipe with its own ImageNet weights. It has not been trained
to the end with this project.
"""

from mask_rcnn_jax.config import override
from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.training import ExperimentConfig


def get_config() -> ExperimentConfig:
    model = ["model.backbone.bottom_up.depth=101", "pretrained=data/weights/resnet101.npz"]
    schedule = ["steps=270000", "schedule.decay.milestones=210000,250000"]
    intervals = ["eval_every=30000", "checkpoint_every=5000"]
    return override(coco_r50_fpn_1x.get_config(), model + schedule + intervals)
