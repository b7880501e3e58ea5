"""Mask R-CNN on synthetic shapes, the embedded default: trains in minutes on two CPU cores, without any download.

    mask-rcnn train --workdir runs/shapes

A small ResNet-18-FPN with group norm, from scratch, at 128 px.
"""

from mask_rcnn_jax.data import DataConfig, ShapesConfig
from mask_rcnn_jax.models import (
    BoxHeadConfig,
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    ResNetConfig,
    RPNConfig,
)
from mask_rcnn_jax.training import AdamWConfig, CosineDecay, ExperimentConfig, ScheduleConfig


def get_config() -> ExperimentConfig:
    norm = NormConfig(kind="group_norm", groups=8)
    return ExperimentConfig(
        model=MaskRCNNConfig(
            num_classes=6,
            backbone=FPNConfig(bottom_up=ResNetConfig(depth=18, width=32, norm=norm, freeze_at=0), channels=64),
            rpn=RPNConfig(
                sizes=((16.0,), (32.0,), (64.0,), (96.0,), (128.0,)),
                samples=64,
                pre_nms_train=200,
                pre_nms_test=200,
                post_nms_train=200,
                post_nms_test=100,
            ),
            box_head=BoxHeadConfig(fc_channels=256, samples=64, max_detections=50),
            mask_head=MaskHeadConfig(channels=64, num_convs=2),
            pixel_mean=(127.5, 127.5, 127.5),
            pixel_std=(64.0, 64.0, 64.0),
            channel_order="rgb",
        ),
        data=DataConfig(
            source=ShapesConfig(),
            short_side=(128,),
            short_side_eval=128,
            max_side=128,
            canvas=(128, 128),
            max_instances=8,
            rotate90=0.75,
            num_workers=0,
        ),
        optimizer=AdamWConfig(weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=100, decay=CosineDecay()),
        steps=3200,
        batch_size=4,
        log_every=100,
        eval_every=1600,
        checkpoint_every=400,
    )
