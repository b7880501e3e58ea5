"""Mask R-CNN, ResNet-101-FPN, on COCO 2017, 3x schedule: Detectron2's mask_rcnn_R_101_FPN_3x.

    python train.py --config configs/coco_r101_fpn_3x.py --workdir runs/coco_r101_fpn_3x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/resnet101.npz

`data.source.root` holds `annotations/instances_{train,val}2017.json` and the folders `train2017` and `val2017`.
`pretrained` is torchvision's ImageNet ResNet-101 as an .npz file of its state dict.

Detectron2 publishes 42.9 box AP and 38.6 mask AP for this recipe with its own ImageNet weights. It has not been trained
to the end with this project. For another batch size, scale the learning rate with it and the steps against it.
"""

from mask_rcnn_jax.data import CocoConfig, DataConfig
from mask_rcnn_jax.models import FPNConfig, MaskRCNNConfig, ResNetConfig
from mask_rcnn_jax.training import ExperimentConfig, ScheduleConfig, SGDConfig, StepDecay


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        model=MaskRCNNConfig(
            num_classes=80,
            backbone=FPNConfig(bottom_up=ResNetConfig(depth=101, stride_in_1x1=False)),
            pixel_mean=(123.675, 116.28, 103.53),
            pixel_std=(58.395, 57.12, 57.375),
            channel_order="rgb",
            dtype="bfloat16",
        ),
        data=DataConfig(
            source=CocoConfig(root="data/coco", train_split="train2017", val_split="val2017"),
            short_side=(640, 672, 704, 736, 768, 800),
            short_side_eval=800,
            max_side=1333,
            canvas=(832, 1344),
            num_workers=16,
        ),
        optimizer=SGDConfig(weight_decay=1e-4),
        schedule=ScheduleConfig(
            learning_rate=0.02, warmup_steps=1000, warmup_factor=0.001, decay=StepDecay((210_000, 250_000))
        ),
        pretrained="data/weights/resnet101.npz",
        steps=270_000,
        batch_size=16,
        eval_every=30_000,
        checkpoint_every=5_000,
    )
