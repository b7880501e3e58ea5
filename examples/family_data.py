"""Members of the family that learn from more than boxes and masks, or are given their proposals (`family.py`)."""

from dataclasses import replace

from mask_rcnn_jax.data import ProposalFilesConfig, ShapesConfig
from mask_rcnn_jax.data.sources.shapes import KEYPOINTS, TEXTURES
from mask_rcnn_jax.models import (
    FPNConfig,
    GivenProposalsConfig,
    KeypointHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PanopticConfig,
    ResNetConfig,
    SemanticHeadConfig,
    WarpConfig,
    architectures,
)
from mask_rcnn_jax.training import ExperimentConfig


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
