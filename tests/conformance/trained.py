"""COCO's AP of a torchvision model that was trained: on real annotations, which random weights find nothing of."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import backbone_utils
from torchvision.ops import FrozenBatchNorm2d

from mask_rcnn_jax.data import read_image
from mask_rcnn_jax.models import MaskRCNNConfig
from tests.conformance import reference
from tests.conformance.average_precision import CANVAS, SHORT_SIDE, difference_rows, evaluated, reference_results, score
from tests.conformance.rows import Row
from tests.conformance.sources import dataset, imported, shared_folder, target, v1_config

SOURCE = "torchvision maskrcnn R18, trained"
STEPS, BATCH, LEARNING_RATE = 400, 4, 0.01


def rows() -> list[Row]:
    """AP on the images that the model was trained on: a few minutes do not teach it to generalise."""
    val, model = dataset("coco_mini"), trained()
    expected = score(val, list(reference_results(model.eval(), val)))
    assert expected["segm/AP"] > 0.05, f"training reached a mask AP of {expected['segm/AP']:.3f} only"
    return difference_rows(SOURCE, expected, evaluated(config(), imported(config(), model), val))


def config() -> MaskRCNNConfig:
    """The model in this project's terms."""
    model = v1_config(80, 1)
    bottom_up = replace(model.backbone.bottom_up, depth=18)
    return replace(model, backbone=replace(model.backbone, bottom_up=bottom_up))


def trained() -> nn.Module:
    """torchvision's Mask R-CNN with a ResNet-18 from ImageNet, after some steps on coco_mini's val."""
    torch.manual_seed(0)
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    _load_imagenet(backbone.body)
    model = detection.MaskRCNN(
        backbone,
        81,
        min_size=SHORT_SIDE,
        max_size=CANVAS,
        rpn_post_nms_top_n_train=300,
        box_batch_size_per_image=128,
    ).train()
    records = [record for record in dataset("coco_mini").records if not record.iscrowd.all()]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS)
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        batch = [records[index] for index in random.choice(len(records), BATCH, replace=False)]
        losses = model(reference.tensors([read_image(record.path) for record in batch]), [target(r, 80) for r in batch])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
    return model


def _load_imagenet(body: nn.Module) -> None:
    """A ResNet-18 whose batch norms are folded into the convolutions; four kernels are missing and stay random."""
    for name, tensor in np.load(shared_folder() / "weights" / "resnet18_imagenet_partial.npz").items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("fc"):
            continue
        if kind == "bias":  # the norm after the convolution adds it
            layer = layer.replace("downsample.0", "downsample.1").replace("conv", "bn")
        getattr(body.get_submodule(layer), kind).data.copy_(torch.from_numpy(tensor))
