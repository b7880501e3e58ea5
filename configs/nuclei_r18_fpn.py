"""Mask R-CNN, ResNet-18-FPN, on nuclei (Data Science Bowl 2018), from an ImageNet backbone, on two CPU cores.

    mask-rcnn train --config nuclei_r18_fpn --workdir runs/nuclei \
        --set data.source.root=PATH/TO/nuclei pretrained=PATH/TO/resnet18.npz

`data.source.root` is a COCO directory with the splits train and val; `pretrained` is an .npz file with torchvision's
names. Nuclei are small and many: anchors start at 8 px, images are enlarged, crops keep the step cheap, and up to 300
detections count.
"""

from mask_rcnn_jax.data import CocoConfig, DataConfig
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.models import BoxHeadConfig, FPNConfig, MaskHeadConfig, MaskRCNNConfig, ResNetConfig, RPNConfig
from mask_rcnn_jax.training import AdamWConfig, CosineDecay, ExperimentConfig, ScheduleConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        model=MaskRCNNConfig(
            num_classes=1,
            backbone=FPNConfig(bottom_up=ResNetConfig(depth=18), channels=128),
            rpn=RPNConfig(sizes=((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))),
            box_head=BoxHeadConfig(fc_channels=512, samples=256, max_detections=300),
            mask_head=MaskHeadConfig(channels=64),
            pixel_mean=(123.675, 116.28, 103.53),
            pixel_std=(58.395, 57.12, 57.375),
            channel_order="rgb",
        ),
        data=DataConfig(
            source=CocoConfig(root="data/nuclei"),
            short_side=(256, 320, 384, 448, 512),
            crop=(256, 256),
            canvas=(256, 256),
            short_side_eval=384,
            canvas_eval=(384, 544),
            max_side=1600,
            vertical_flip=0.5,
            max_instances=400,
            num_workers=0,
        ),
        optimizer=AdamWConfig(weight_decay=0.05, clip_norm=10.0),
        schedule=ScheduleConfig(learning_rate=3e-4, warmup_steps=50, warmup_factor=0.1, decay=CosineDecay()),
        evaluation=EvaluationConfig(max_detections=(1, 100, 300)),
        pretrained="data/weights/resnet18_imagenet_partial.npz",
        steps=1200,
        batch_size=4,
        eval_every=0,
        checkpoint_every=100,
    )
