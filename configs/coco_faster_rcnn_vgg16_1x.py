"""Faster R-CNN, VGG-16, on COCO 2017: one map at a stride of 16, anchors of three sizes and three ratios, RoIPool.

    mask-rcnn train --config coco_faster_rcnn_vgg16_1x --workdir runs/coco_faster_rcnn_vgg16_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/vgg16.npz

`pretrained` is torchvision's ImageNet VGG-16 as an .npz file of its state dict; its first two fully connected layers
become those of the box head. Steps and sizes of images are those of `coco_r50_fpn_1x`, the learning rate is the paper's
(Ren et al. 2015), .003 for 8 images, times two. The paper adds anchors of 64 pixels on COCO:
`--set model.rpn.sizes='((64,128,256,512),)'`. It has not been trained to the end with this project.
"""

from dataclasses import replace

from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.models import VGGConfig, architectures
from mask_rcnn_jax.training import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = coco_r50_fpn_1x.get_config()
    model = replace(
        architectures.vgg(VGGConfig(depth=16)),
        pixel_mean=config.model.pixel_mean,
        pixel_std=config.model.pixel_std,
        channel_order=config.model.channel_order,
        dtype=config.model.dtype,
    )
    schedule = replace(config.schedule, learning_rate=0.006)
    return replace(config, model=model, schedule=schedule, pretrained="data/weights/vgg16.npz")
