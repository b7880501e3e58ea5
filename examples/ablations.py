"""The ablations of Mask R-CNN (He et al. 2017, table 2), on synthetic shapes of which half are thin, at a small size.

mask-rcnn study examples/ablations.py --workdir runs/ablations
"""

from dataclasses import fields, replace
from typing import Any

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.models import (
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    MLPMaskHeadConfig,
    PoolerConfig,
    ResNetConfig,
    RoIPoolConfig,
    RoIPoolerConfig,
)
from mask_rcnn_jax.studies import Study
from mask_rcnn_jax.training import ExperimentConfig

STEPS = 600


def base() -> ExperimentConfig:
    """The demo's model, trained for a fifth of its steps."""
    config = shapes.get_config()
    source = replace(config.data.source, root="data/thin_shapes", thin=True)
    return replace(config, data=replace(config.data, source=source), steps=STEPS, eval_every=0, checkpoint_every=STEPS)


def with_model(model: MaskRCNNConfig) -> ExperimentConfig:
    return replace(base(), model=model)


def with_poolers(model: MaskRCNNConfig, kind: type[RoIPoolerConfig], **changes: Any) -> MaskRCNNConfig:
    """The model with other poolers from the same levels, of the same sides."""

    def other(pooler: RoIPoolerConfig) -> RoIPoolerConfig:
        return kind(**{field.name: getattr(pooler, field.name) for field in fields(RoIPoolerConfig)}, **changes)

    box, mask = model.box_head, model.mask_head
    assert isinstance(mask, MaskHeadConfig)
    box = replace(box, pooler=other(box.pooler))
    return replace(model, box_head=box, mask_head=replace(mask, pooler=other(mask.pooler)))


def on_one_map(name: str) -> MaskRCNNConfig:
    """The model on one map of the ResNet in place of a pyramid: res4 (stride 16) or res5 (stride 32)."""
    model = base().model
    assert isinstance(model.backbone, FPNConfig)
    assert isinstance(model.backbone.bottom_up, ResNetConfig)
    assert isinstance(model.mask_head, MaskHeadConfig)
    return replace(
        model,
        backbone=replace(model.backbone.bottom_up, out_features=(name,)),
        rpn=replace(model.rpn, features=(name,), sizes=((16.0, 32.0, 64.0, 96.0, 128.0),)),
        box_head=replace(model.box_head, pooler=PoolerConfig(output_size=7, features=(name,))),
        mask_head=replace(model.mask_head, pooler=PoolerConfig(output_size=14, features=(name,))),
    )


def get_study() -> Study:
    fpn, c4, c5 = base().model, on_one_map("res4"), on_one_map("res5")
    mlp = MLPMaskHeadConfig(fc_channels=256)
    return Study(
        config=base(),
        rows={
            "base": {},
            "fpn-roi_pool": with_model(with_poolers(fpn, RoIPoolConfig)),
            "c4-roi_align": with_model(c4),
            "c4-roi_pool": with_model(with_poolers(c4, RoIPoolConfig)),
            "c5-roi_align": with_model(c5),
            "c5-roi_pool": with_model(with_poolers(c5, RoIPoolConfig)),
            "fpn-roi_align_max": with_model(with_poolers(fpn, PoolerConfig, reduction="max")),
            "softmax": {"model.mask_head.mask_loss": "softmax"},
            "mlp": with_model(replace(fpn, mask_head=mlp)),
            "four_convs": {"model.mask_head.num_convs": 4},
            "class_agnostic": {"model.mask_head.class_agnostic": True},
            "no_masks": {"model.mask_head": None},
        },
        seeds=range(3),
        metrics=("segm/AP", "segm/AP50", "segm/AP75", "bbox/AP"),
    )
