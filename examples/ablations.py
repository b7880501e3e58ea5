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

METRICS = ("segm/AP", "segm/AP50", "segm/AP75", "bbox/AP")
_STEPS = 600


def with_poolers(model: MaskRCNNConfig, kind: type[RoIPoolerConfig], **changes: Any) -> MaskRCNNConfig:
    """The model with other poolers from the same levels, of the same sides."""

    def other(pooler: RoIPoolerConfig) -> RoIPoolerConfig:
        return kind(**{field.name: getattr(pooler, field.name) for field in fields(RoIPoolerConfig)}, **changes)

    assert isinstance(model.mask_head, MaskHeadConfig)
    box = replace(model.box_head, pooler=other(model.box_head.pooler))
    return replace(model, box_head=box, mask_head=replace(model.mask_head, pooler=other(model.mask_head.pooler)))


def on_one_map(model: MaskRCNNConfig, name: str) -> MaskRCNNConfig:
    """The model on one map of its ResNet in place of a pyramid: res4 (stride 16) or res5 (stride 32)."""
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


def of_pyramid(config: ExperimentConfig) -> dict[str, Any]:
    """Rows that change one thing of a model with a pyramid."""
    model = config.model
    return {
        "base": {},
        "roi_pool": replace(config, model=with_poolers(model, RoIPoolConfig)),
        "roi_align_max": replace(config, model=with_poolers(model, PoolerConfig, reduction="max")),
        "softmax": {"model.mask_head.mask_loss": "softmax"},
        "mlp": replace(config, model=replace(model, mask_head=MLPMaskHeadConfig(fc_channels=256))),
        "no_masks": {"model.mask_head": None},
    }


def get_study() -> Study:
    config = shapes.get_config()
    source = replace(config.data.source, root="data/thin_shapes", thin=True)
    data = replace(config.data, source=source)
    config = replace(config, data=data, steps=_STEPS, eval_every=0, checkpoint_every=_STEPS)
    c4, c5 = on_one_map(config.model, "res4"), on_one_map(config.model, "res5")
    rows = of_pyramid(config) | {
        "c4-roi_align": replace(config, model=c4),
        "c4-roi_pool": replace(config, model=with_poolers(c4, RoIPoolConfig)),
        "c5-roi_align": replace(config, model=c5),
        "c5-roi_pool": replace(config, model=with_poolers(c5, RoIPoolConfig)),
        "four_convs": {"model.mask_head.num_convs": 4},
        "class_agnostic": {"model.mask_head.class_agnostic": True},
    }
    return Study(config=config, rows=rows, seeds=range(3), metrics=METRICS)
