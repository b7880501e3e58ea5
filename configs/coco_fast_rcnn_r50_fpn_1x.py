"""Fast R-CNN, ResNet-50-FPN, on COCO 2017, 1x schedule: Detectron2's fast_rcnn_R_50_FPN_1x.

    mask-rcnn train --config coco_fast_rcnn_r50_fpn_1x --workdir runs/coco_fast_rcnn_r50_fpn_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/resnet50.npz

`coco_r50_fpn_1x` without masks, in boxes from files. `data.proposals.train` and `data.proposals.val` are here those of
Detectron2's RPN (rpn_R_50_FPN_1x) by the names that it publishes them under; those of `mask-rcnn propose` will do, too.

Detectron2 publishes 37.8 box AP for this recipe with its own ImageNet weights. It has not been trained to the end with
this project.
"""

from dataclasses import replace

from mask_rcnn_jax.config import override
from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.data import ProposalFilesConfig
from mask_rcnn_jax.models import GivenProposalsConfig
from mask_rcnn_jax.training import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = override(coco_r50_fpn_1x.get_config(), ["data.source.boxes_only=true"])
    files = ProposalFilesConfig(
        train="data/proposals/coco_2017_train_box_proposals_21bc3a.pkl",
        val="data/proposals/coco_2017_val_box_proposals_ee0dad.pkl",
    )
    # With RoIAlign, as Detectron2 has it; `architectures.fast_rcnn` takes RoIPool.
    model = replace(config.model, rpn=GivenProposalsConfig(), mask_head=None)
    return replace(config, model=model, data=replace(config.data, proposals=files))
