"""Panoptic FPN, ResNet-50-FPN, on COCO 2017, 1x schedule: Detectron2's panoptic_fpn_R_50_1x.

    mask-rcnn train --config coco_panoptic_fpn_r50_1x --workdir runs/coco_panoptic_fpn_r50_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/resnet50.npz

`coco_r50_fpn_1x` with a head for the 53 kinds of stuff of COCO's panoptic annotations. `data.source.root` also holds
`annotations/panoptic_{train,val}2017.json` and the PNG files of each in a folder beside it, of the same name without
suffix. Detectron2 publishes 39.4 PQ, 37.6 box AP and 34.7 mask AP for this recipe with its own ImageNet weights. It has
not been trained to the end with this project.
"""

from dataclasses import replace

from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.data import CocoConfig
from mask_rcnn_jax.models import architectures
from mask_rcnn_jax.training import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = coco_r50_fpn_1x.get_config()
    assert isinstance(config.data.source, CocoConfig)
    source = replace(config.data.source, panoptic_file="panoptic_{split}.json")
    return replace(config, model=architectures.panoptic_fpn(config.model), data=replace(config.data, source=source))
