"""Mask R-CNN, Swin-T-FPN, on COCO 2017, 1x schedule: MMDetection's mask-rcnn_swin-t-p4-w7_fpn_1x_coco.

    mask-rcnn train --config coco_mask_rcnn_swin_t_fpn_1x --workdir runs/coco_mask_rcnn_swin_t_fpn_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/swin_t.pth

`pretrained` is an ImageNet Swin-T with the names of torchvision, timm or its authors. AdamW spares norms and tables of
positions. Swin-S is `--set model.backbone.bottom_up.depths=2,2,18,2`.

MMDetection publishes 42.7 box AP and 39.3 mask AP for this recipe. It has not been trained to the end with this
project. For another batch size, scale the learning rate with it and the steps against it.
"""

from dataclasses import replace

from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.models import FPNConfig, SwinConfig
from mask_rcnn_jax.training import AdamWConfig, ExperimentConfig, StepDecay


def get_config() -> ExperimentConfig:
    config = coco_r50_fpn_1x.get_config()
    return replace(
        config,
        model=replace(config.model, backbone=FPNConfig(bottom_up=SwinConfig())),
        data=replace(config.data, short_side=(800,), smaller_canvases=config.data.smaller_canvases_eval),
        optimizer=AdamWConfig(weight_decay=0.05),
        schedule=replace(config.schedule, learning_rate=1e-4, decay=StepDecay((58_640, 80_630))),
        pretrained="data/weights/swin_t.pth",
        steps=87_960,  # 12 epochs
    )
