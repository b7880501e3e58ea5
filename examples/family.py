"""Members of the family on synthetic shapes, each small and trained for a minute or two on one processor.

mask-rcnn study examples/family.py --workdir runs/family --rows mask_rcnn
mask-rcnn propose --config shapes --split train --out data/proposals/shapes_train.npz
mask-rcnn propose --config shapes --split val --out data/proposals/shapes_val.npz
mask-rcnn study examples/family.py --workdir runs/family

The first writes the shapes, too; the proposals are for R-CNN and Fast R-CNN. Stuff and keypoints are those of the same images.
"""

from dataclasses import replace

from ablations import on_one_map

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.data import ProposalFilesConfig, ShapesConfig
from mask_rcnn_jax.data.sources.shapes import KEYPOINTS, TEXTURES
from mask_rcnn_jax.models import (
    ConvNeXtConfig,
    FPNConfig,
    GivenProposalsConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PanopticConfig,
    PointRendConfig,
    PoolerConfig,
    ResNetConfig,
    RoIPoolConfig,
    SemanticHeadConfig,
    SimplePyramidConfig,
    SwinConfig,
    VGGConfig,
    ViTConfig,
    WarpConfig,
    architectures,
)
from mask_rcnn_jax.studies import Study
from mask_rcnn_jax.training import ExperimentConfig

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


def of_other_data(base: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """The members by name that learn from more than boxes and masks, or are given their proposals."""
    source = base.data.source
    assert isinstance(source, ShapesConfig)
    points = KeypointHeadConfig(num_keypoints=len(KEYPOINTS), num_convs=2, channels=64)
    norm = NormConfig(kind="group_norm", groups=8)
    stuff = SemanticHeadConfig(
        num_kinds=len(TEXTURES) + 1, channels=64, norm=norm, combine=PanopticConfig(min_stuff_area=64)
    )
    with_points = replace(base.data, source=replace(source, root="data/shapes_keypoints", keypoints=True), rotate90=0.0)
    with_stuff = replace(base.data, source=replace(source, root="data/shapes_stuff", stuff=True))
    files = ProposalFilesConfig(train="data/proposals/shapes_train.npz", val="data/proposals/shapes_val.npz", slots=200)
    given = replace(base.data, proposals=files)
    return {
        "keypoint_rcnn": replace(
            base,
            model=replace(base.model, mask_head=None, keypoint_head=points),
            data=with_points,
            evaluation=replace(base.evaluation, keypoint_sigmas=(0.05,) * len(KEYPOINTS)),
        ),
        "panoptic_fpn": replace(base, model=replace(base.model, heads=(stuff,)), data=with_stuff),
        "fast_rcnn": replace(base, model=architectures.fast_rcnn(base.model), data=given),
        "rcnn": replace(base, model=rcnn(base.model), data=given),
    }


def rcnn(base: MaskRCNNConfig) -> MaskRCNNConfig:
    """A ResNet-18 on crops of 64 x 64 pixels."""
    assert isinstance(base.backbone, FPNConfig)
    assert isinstance(base.backbone.bottom_up, ResNetConfig)
    model = architectures.rcnn(base.backbone.bottom_up, base.num_classes)
    pooler = WarpConfig(output_size=64, context=4)
    box_head = replace(model.box_head, pooler=pooler, samples=16, max_detections=base.box_head.max_detections)
    pixels = {"pixel_mean": base.pixel_mean, "pixel_std": base.pixel_std, "channel_order": base.channel_order}
    return replace(model, box_head=box_head, rpn=GivenProposalsConfig(num_test=100), **pixels)


def get_study() -> Study:
    config = replace(shapes.get_config(), steps=_STEPS, eval_every=0, checkpoint_every=_STEPS)
    rows = {name: replace(config, model=model) for name, model in members(config.model).items()}
    rows |= of_other_data(config)
    return Study(config=config, rows=rows, seeds=range(3), metrics=("segm/AP", "bbox/AP", "keypoints/AP"))
