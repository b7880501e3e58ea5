"""Keypoint R-CNN, ResNet-18-FPN, on 240 images of COCO's persons, from an ImageNet backbone, on two CPU cores.

    mask-rcnn train --config person_keypoints_r18_fpn --workdir runs/person_keypoints \
        --set data.source.root=PATH/TO/coco_person_kp pretrained=PATH/TO/resnet18.npz

`data.source.root` is a COCO directory with the splits train and val whose category names its keypoints; for COCO's own
files add `data.source.annotation_file=person_keypoints_{split}.json`. `pretrained` is an .npz file with torchvision's
names. Detectron2's keypoint_rcnn_R_50_FPN on a smaller scale: no masks, a smooth box loss, and only images with an
annotated keypoint. So few images teach where a person's parts are, not how to find every person.

Result with seed 0: keypoints/AP .021 after 250 steps and .036 (AP50 .146) after 500; box AP .118 and .193; 44 minutes
on two cores that were busy with other work.
"""

from mask_rcnn_jax.data import CocoConfig, DataConfig
from mask_rcnn_jax.models import BoxHeadConfig, FPNConfig, KeypointHeadConfig, MaskRCNNConfig, ResNetConfig, RPNConfig
from mask_rcnn_jax.training import AdamWConfig, CosineDecay, ExperimentConfig, ScheduleConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        model=MaskRCNNConfig(
            num_classes=1,
            backbone=FPNConfig(bottom_up=ResNetConfig(depth=18), channels=128),
            rpn=RPNConfig(
                sizes=((16.0,), (32.0,), (64.0,), (128.0,), (256.0,)),
                pre_nms_train=500,
                pre_nms_test=500,
                post_nms_train=300,
                post_nms_test=300,
            ),
            box_head=BoxHeadConfig(fc_channels=512, samples=64, max_detections=20, smooth_l1_beta=0.5),
            mask_head=None,
            keypoint_head=KeypointHeadConfig(num_convs=4, channels=128),
            pixel_mean=(123.675, 116.28, 103.53),
            pixel_std=(58.395, 57.12, 57.375),
            channel_order="rgb",
        ),
        data=DataConfig(
            source=CocoConfig(root="data/coco_person_kp"),
            short_side=(192, 208, 224, 240, 256),
            short_side_eval=256,
            max_side=320,
            canvas=(256, 320),
            max_instances=16,
            min_keypoints=1,
            num_workers=0,
        ),
        optimizer=AdamWConfig(weight_decay=0.05, clip_norm=10.0),
        schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=50, warmup_factor=0.1, decay=CosineDecay()),
        pretrained="data/weights/resnet18_imagenet_partial.npz",
        steps=500,
        batch_size=4,
        eval_every=250,
        checkpoint_every=100,
    )
