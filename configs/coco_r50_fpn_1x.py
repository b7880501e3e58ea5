"""Mask R-CNN, ResNet-50-FPN, on COCO 2017, 1x schedule: Detectron2's mask_rcnn_R_50_FPN_1x.

    mask-rcnn train --config coco_r50_fpn_1x --workdir runs/coco_r50_fpn_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/resnet50.npz

`data.source.root` holds `annotations/instances_{train,val}2017.json` and the folders `train2017` and `val2017`.
`pretrained` is torchvision's ImageNet ResNet-50 as an .npz file of its state dict; so bottlenecks stride in the 3x3,
and pixels are normalised as torchvision does.

Detectron2 publishes 38.6 box AP and 35.2 mask AP for this recipe with its own ImageNet weights. It has not been trained
to the end with this project. For another batch size, scale the learning rate with it and the steps against it.
"""

from mask_rcnn_jax.data import CocoConfig, DataConfig
from mask_rcnn_jax.models import FPNConfig, MaskRCNNConfig, ResNetConfig
from mask_rcnn_jax.training import ExperimentConfig, ScheduleConfig, SGDConfig, StepDecay


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        model=MaskRCNNConfig(
            num_classes=80,
            backbone=FPNConfig(bottom_up=ResNetConfig(depth=50, stride_in_1x1=False)),
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
            canvas=(800, 1344),
            # Four canvases an orientation compute 1.15 pixels for each of the images' in training and 1.03 in
            # evaluation, one 1.47 and 1.21.
            smaller_canvases=((704, 960), (768, 1024), (800, 1152)),
            smaller_canvases_eval=((800, 896), (800, 1088), (800, 1216)),
            num_workers=16,
        ),
        optimizer=SGDConfig(weight_decay=1e-4),
        schedule=ScheduleConfig(
            learning_rate=0.02, warmup_steps=1000, warmup_factor=0.001, decay=StepDecay((60_000, 80_000))
        ),
        pretrained="data/weights/resnet50.npz",
        steps=90_000,
        batch_size=16,
        eval_every=10_000,
        checkpoint_every=2_500,
    )
