"""PointRend, ResNet-50-FPN, on COCO 2017, 1x schedule: Detectron2's pointrend_rcnn_R_50_FPN_1x_coco.

    mask-rcnn train --config coco_pointrend_r50_fpn_1x --workdir runs/coco_pointrend_r50_fpn_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/resnet50.npz

`coco_r50_fpn_1x` with masks of 224 x 224 that are made finer point by point. Detectron2 publishes 36.2 mask AP for this
recipe with its own ImageNet weights. It has not been trained to the end with this project.
"""

from dataclasses import replace

from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.models import architectures
from mask_rcnn_jax.training import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = coco_r50_fpn_1x.get_config()
    return replace(config, model=architectures.point_rend(config.model))
