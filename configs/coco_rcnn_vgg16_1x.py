"""R-CNN, VGG-16, on COCO 2017: each proposal is cut out of the image, warped to 224 x 224 and classified by itself.

    mask-rcnn propose --data PATH/TO/coco --split train2017 --out data/proposals/train2017.npz
    mask-rcnn propose --data PATH/TO/coco --split val2017 --out data/proposals/val2017.npz
    mask-rcnn train --config coco_rcnn_vgg16_1x --workdir runs/coco_rcnn_vgg16_1x \
        --set data.source.root=PATH/TO/coco pretrained=PATH/TO/vgg16.npz

`pretrained` is torchvision's ImageNet VGG-16 as an .npz file of its state dict, with its first two fully connected
layers. As in the paper (Girshick et al. 2014) all layers are trained at a learning rate of .001 on 128 RoIs a batch, a
quarter of them foreground, here 64 of each of two images; boxes are learnt at the same time, not afterwards. Images
have about the size of COCO's, for crops are made of the pixels at hand. SVMs are trained from this run as
`docs/family.md` says. It has not been trained to the end with this project.
"""

from dataclasses import replace

from mask_rcnn_jax.config import override
from mask_rcnn_jax.configs import coco_r50_fpn_1x
from mask_rcnn_jax.data import ProposalFilesConfig
from mask_rcnn_jax.models import VGGConfig, architectures
from mask_rcnn_jax.training import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = override(coco_r50_fpn_1x.get_config(), ["data.source.boxes_only=true"])
    rcnn = architectures.rcnn(VGGConfig(depth=16))
    model = replace(
        rcnn,
        box_head=replace(rcnn.box_head, samples=64),
        pixel_mean=config.model.pixel_mean,
        pixel_std=config.model.pixel_std,
        channel_order=config.model.channel_order,
        dtype=config.model.dtype,
    )
    files = ProposalFilesConfig(train="data/proposals/train2017.npz", val="data/proposals/val2017.npz")
    data = replace(
        config.data, short_side=(480,), short_side_eval=480, max_side=640, canvas=(480, 640), proposals=files
    )
    schedule = replace(config.schedule, learning_rate=0.001)
    return replace(config, model=model, data=data, schedule=schedule, batch_size=2, pretrained="data/weights/vgg16.npz")
