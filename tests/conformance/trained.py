"""COCO's AP of a torchvision model that was trained: on real annotations, which random weights find nothing of."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torchvision.models import detection, resnet18
from torchvision.models.detection import backbone_utils, faster_rcnn, mask_rcnn
from torchvision.ops import FrozenBatchNorm2d

from mask_rcnn_jax.data import CocoDataset, Record, read_image
from mask_rcnn_jax.models import MaskRCNNConfig
from tests.conformance import reference
from tests.conformance.average_precision import CANVAS, SHORT_SIDE, difference_rows, evaluated, reference_results, score
from tests.conformance.needed import shared_folder
from tests.conformance.rows import Row
from tests.conformance.sources import dataset, imported, target, v1_config

SOURCE = "torchvision maskrcnn R18, trained"
STEPS, BATCH, LEARNING_RATE = 200, 4, 1e-3
NUM_IMAGES = 16


def rows() -> list[Row]:
    """AP on the images that the model was trained on: a few minutes do not teach it to generalise."""
    images, model = _images(), trained()
    expected = score(images, list(reference_results(model.eval(), images)))
    assert expected["segm/AP"] > 0.05, f"training reached a mask AP of {expected['segm/AP']:.3f} only"
    return difference_rows(SOURCE, expected, evaluated(config(), imported(config(), model), images))


def config(num_classes: int = 80) -> MaskRCNNConfig:
    """The model in this project's terms: a whole ResNet-18 under a pyramid and heads of a quarter of the channels."""
    model = v1_config(num_classes, 4)
    bottom_up = replace(model.backbone.bottom_up, depth=18, width=64)
    return replace(model, backbone=replace(model.backbone, bottom_up=bottom_up))


def trained() -> nn.Module:
    """torchvision's Mask R-CNN with a ResNet-18 from ImageNet, after some steps on a few of coco_mini's val images."""
    torch.manual_seed(0)
    model, records = untrained().train(), _images().records
    images = [reference.tensors([read_image(record.path)])[0] for record in records]
    targets = [target(record, 80) for record in records]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        chosen = random.choice(len(records), BATCH, replace=False)
        losses = model([images[index] for index in chosen], [targets[index] for index in chosen])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
    return model


def _images() -> CocoDataset:
    """The first of coco_mini's val with few and large objects, which are learnt soonest."""
    val = dataset("coco_mini")

    def easy(record: Record) -> bool:
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        large = sides.min(initial=np.inf) > 0.12 * min(record.height, record.width)
        return large and 0 < len(record.boxes) <= 6 and not record.iscrowd.any()

    return replace(val, records=tuple(filter(easy, val.records))[:NUM_IMAGES])


def untrained(num_classes: int = 80) -> nn.Module:
    body = resnet18(norm_layer=FrozenBatchNorm2d)
    _load_imagenet(body)
    stages = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    backbone = backbone_utils.BackboneWithFPN(body, stages, [64, 128, 256, 512], out_channels=64)
    return detection.MaskRCNN(
        backbone,
        min_size=SHORT_SIDE,
        max_size=CANVAS,
        box_head=faster_rcnn.TwoMLPHead(64 * 7**2, 256),
        box_predictor=faster_rcnn.FastRCNNPredictor(256, num_classes + 1),
        mask_head=mask_rcnn.MaskRCNNHeads(64, (64, 64, 64, 64), 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(64, 64, num_classes + 1),
        rpn_post_nms_top_n_train=500,
        box_batch_size_per_image=256,
    )


def _load_imagenet(body: nn.Module) -> None:
    """A ResNet-18 whose batch norms are folded into the convolutions; four kernels are missing and stay random."""
    for name, tensor in np.load(shared_folder() / "weights" / "resnet18_imagenet_partial.npz").items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("fc"):
            continue
        if kind == "bias":  # the norm after the convolution adds it
            layer = layer.replace("downsample.0", "downsample.1").replace("conv", "bn")
        getattr(body.get_submodule(layer), kind).data.copy_(torch.from_numpy(tensor))
