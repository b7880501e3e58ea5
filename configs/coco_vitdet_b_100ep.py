"""Mask R-CNN, ViTDet-B, on COCO 2017, 100 epochs: Detectron2's mask_rcnn_vitdet_b_100ep.

    mask-rcnn train --config coco_vitdet_b_100ep --workdir runs/coco_vitdet_b_100ep \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/mae_pretrain_vit_base.pth

`data.source.root` holds `annotations/instances_{train,val}2017.json` and the folders `train2017` and `val2017`.
`pretrained` is the ViT-B that MAE trained on ImageNet without labels (He et al. 2021, https://arxiv.org/abs/2111.06377),
the .pth file as it is published.

For ViT-L, model.backbone.bottom_up is ViTConfig(channels=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23),
drop_path=0.4), and optimizer.layer_decay .8.

Detectron2 publishes 51.6 box AP and 45.9 mask AP for this recipe. It has not been trained to the end with this project.
"""

from dataclasses import replace

from mask_rcnn_jax.data import CocoConfig, DataConfig, LargeScaleJitterConfig
from mask_rcnn_jax.models import ViTConfig, architectures
from mask_rcnn_jax.training import AdamWConfig, ExperimentConfig, ScheduleConfig, StepDecay


def get_config() -> ExperimentConfig:
    model = architectures.vitdet(ViTConfig())
    return ExperimentConfig(
        model=replace(model, dtype="bfloat16", remat=("backbone",)),
        data=DataConfig(
            source=CocoConfig(root="data/coco", train_split="train2017", val_split="val2017"),
            # Detectron2 leaves the rest of the square at zero after normalisation, to which this grey is the closest.
            large_scale_jitter=LargeScaleJitterConfig(fill=114),
            short_side_eval=1024,
            max_side=1024,
            canvas=(1024, 1024),
            num_workers=16,
        ),
        optimizer=AdamWConfig(weight_decay=0.1, layer_decay=0.7),
        schedule=ScheduleConfig(
            learning_rate=1e-4, warmup_steps=250, warmup_factor=0.001, decay=StepDecay((163_889, 177_546))
        ),
        pretrained="data/weights/mae_pretrain_vit_base.pth",
        steps=184_375,
        batch_size=64,
        eval_every=20_000,
        checkpoint_every=2_500,
    )
