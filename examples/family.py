"""Members of the family on synthetic shapes, each small and trained for a minute or two on one processor.

mask-rcnn study examples/family.py --workdir runs/family --rows mask_rcnn
mask-rcnn propose --config shapes --split train --out data/proposals/shapes_train.npz
mask-rcnn propose --config shapes --split val --out data/proposals/shapes_val.npz
mask-rcnn study examples/family.py --workdir runs/family

The first writes the shapes, too; the proposals are for R-CNN and Fast R-CNN. All members see the same images.
"""

from dataclasses import replace

from ablations import on_one_map
from family_data import of_other_data

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.models import (
    ConvNeXtConfig,
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PointRendConfig,
    PoolerConfig,
    ResNetConfig,
    RoIPoolConfig,
    SimplePyramidConfig,
    SwinConfig,
    VGGConfig,
    ViTConfig,
    architectures,
)
from mask_rcnn_jax.studies import Study

_STEPS = 300
_DEPTHS = (2, 2, 2, 2)


def c4(base: MaskRCNNConfig) -> MaskRCNNConfig:
    """res5 on each RoI of res4."""
    model, pooler = on_one_map(base, "res4"), PoolerConfig(output_size=14, features=("res4",))
    assert isinstance(model.mask_head, MaskHeadConfig)
    box_head = replace(model.box_head, pooler=pooler, num_fcs=0)
    mask_head = replace(model.mask_head, pooler=pooler, num_convs=0)
    return replace(model, box_head=box_head, mask_head=mask_head, res5_on_rois=True)


def dc5(base: MaskRCNNConfig) -> MaskRCNNConfig:
    """A res5 that is dilated, of a ResNet with bottlenecks."""
    model = on_one_map(base, "res5")
    assert isinstance(model.backbone, ResNetConfig)
    return replace(model, backbone=replace(model.backbone, depth=50, width=16, res5_dilation=2))


def vgg(base: MaskRCNNConfig) -> MaskRCNNConfig:
    """VGG-11 with batch norms, and RoIPool."""
    backbone = VGGConfig(depth=11, width=32, norm=NormConfig(kind="batch_norm"), freeze_at=0, out_features=("conv5",))
    pooler, model = RoIPoolConfig(features=("conv5",)), on_one_map(base, "res4")
    rpn = replace(model.rpn, features=("conv5",))
    return replace(model, backbone=backbone, rpn=rpn, box_head=replace(model.box_head, pooler=pooler), mask_head=None)


def members(base: MaskRCNNConfig) -> dict[str, MaskRCNNConfig]:
    """The members by name, with heads as wide as the demo's."""
    convnext = ConvNeXtConfig(depths=_DEPTHS, channels=(32, 64, 128, 256), layer_scale=1.0)
    swin = SwinConfig(depths=_DEPTHS, channels=32, heads=(1, 2, 4, 8), window=4, drop_path=0.0)
    vit = ViTConfig(128, 4, 4, window=4, global_blocks=(1, 3), image_size=128, pretrained_size=128)
    return {
        "mask_rcnn": base,
        "faster_rcnn": replace(base, mask_head=None),
        "cascade": architectures.cascade(base),
        "point_rend": replace(
            base, mask_head=PointRendConfig(coarse_channels=64, coarse_fc_channels=256, point_channels=64)
        ),
        "c4": c4(base),
        "dc5": dc5(base),
        "vgg": vgg(base),
        "convnext": replace(base, backbone=FPNConfig(convnext, channels=64)),
        "swin": replace(base, backbone=FPNConfig(swin, channels=64)),
        "vitdet": replace(base, backbone=SimplePyramidConfig(vit, channels=64)),
    }


def get_study() -> Study:
    config = replace(shapes.get_config(), steps=_STEPS, eval_every=0, checkpoint_every=_STEPS)
    rows = {name: replace(config, model=model) for name, model in members(config.model).items()}
    rows |= of_other_data(config)
    return Study(config=config, rows=rows, seeds=range(3), metrics=("segm/AP", "bbox/AP", "keypoints/AP"))
