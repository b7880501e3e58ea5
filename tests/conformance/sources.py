"""The reference models of the report, each with this project's configuration of it, its weights and its images."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from mask_rcnn_jax import models, pretrained
from mask_rcnn_jax.data import CocoConfig, CocoDataset, Record, load_coco, read_image, to_rle
from mask_rcnn_jax.models import (
    BoxHeadConfig,
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ResNetConfig,
    Variables,
)
from tests.conformance import reference
from tests.conformance.needed import shared_folder

# Of each folder's val: images of different sizes, portrait and landscape mixed.
IMAGES = {"coco_mini": (0, 4, 28), "coco_person_kp": (87, 40, 0)}


@dataclass(frozen=True)
class Source:
    """A model of torchvision and what this project calls it."""

    name: str
    build: Callable[..., nn.Module]
    config: MaskRCNNConfig
    narrowing: int = reference.NARROWING
    stages: tuple[str, ...] = ()  # those to compare, where others are those of another source; none: all
    trained: tuple[str, ...] = ()  # the types in which losses and gradients are compared
    data: str = "coco_mini"
    short_side: int = 192
    max_side: int = 288
    frozen_norm_epsilon: float = 1e-5
    seed: int = 0
    spread: float = 1.0  # of convolutions' outputs; small ones make variances that epsilon matters for
    residual: float = 0.3  # of what a block adds to what it passes on; more amplifies rounding with depth


@dataclass(frozen=True, eq=False)
class Case:
    """A source with weights, and what it computed on a few images."""

    source: Source
    model: nn.Module
    variables: Variables
    records: tuple[Record, ...]
    images: tuple[np.ndarray, ...]  # RGB, uint8, original size
    trace: reference.Trace

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def config(self) -> MaskRCNNConfig:
        return self.source.config


def v1_config(num_classes: int, narrowing: int, *, head: str = "mask", epsilon: float = 1e-5) -> MaskRCNNConfig:
    """`maskrcnn_resnet50_fpn` with `narrowing` times fewer channels; its relatives have another or no third head."""
    config = MaskRCNNConfig(
        num_classes=num_classes,
        backbone=FPNConfig(bottom_up=ResNetConfig(width=64 // narrowing), channels=256 // narrowing),
        box_head=BoxHeadConfig(fc_channels=1024 // narrowing),
        mask_head=MaskHeadConfig(channels=256 // narrowing) if head == "mask" else None,
        keypoint_head=KeypointHeadConfig(channels=512 // narrowing) if head == "keypoint" else None,
    )
    return models.torchvision(config, frozen_norm_epsilon=epsilon)


def v2_config(num_classes: int, narrowing: int, *, head: str = "mask") -> MaskRCNNConfig:
    """`maskrcnn_resnet50_fpn_v2` with `narrowing` times fewer channels, or without masks."""
    channels = 256 // narrowing
    config = MaskRCNNConfig(
        num_classes=num_classes,
        backbone=FPNConfig(bottom_up=ResNetConfig(width=64 // narrowing, freeze_at=0), channels=channels),
        box_head=BoxHeadConfig(conv_channels=channels, fc_channels=1024 // narrowing),
        mask_head=MaskHeadConfig(channels=channels) if head == "mask" else None,
    )
    return models.torchvision_v2(config)


_FULL_WIDTH = {"narrowing": 1, "stages": ("backbone", "RPN head", "box head", "mask head", "end to end")}
_BOTH = ("float32", "float64")
_LARGE = {"short_side": 448, "max_side": 640}  # RoIs of the whole image reach the coarsest level that is pooled
SOURCES = {
    source.name: source
    for source in (
        Source(
            "torchvision maskrcnn v1",
            reference.maskrcnn_v1,
            v1_config(80, 1),
            trained=("float32",),
            seed=1,
            **_FULL_WIDTH,
        ),
        # With the others' residual the reference's own gradients in float32 and float64 differ by a median of 5.1e-3.
        Source(
            "torchvision maskrcnn v2",
            reference.maskrcnn_v2,
            v2_config(80, 1),
            trained=_BOTH,
            residual=0.1,
            **_FULL_WIDTH,
        ),
        Source("torchvision maskrcnn v1, narrow", reference.maskrcnn_v1, v1_config(12, 8), trained=_BOTH, seed=1),
        Source("torchvision maskrcnn v2, narrow", reference.maskrcnn_v2, v2_config(12, 8), trained=_BOTH, seed=2),
        Source(
            "torchvision maskrcnn v1, narrow, epsilon 0",
            reference.maskrcnn_v1,
            v1_config(12, 8, epsilon=0.0),
            stages=("input", "backbone", "pooling", "end to end"),
            frozen_norm_epsilon=0.0,
            spread=0.01,
            **_LARGE,
        ),
        Source(
            "torchvision fasterrcnn v1, narrow",
            reference.fasterrcnn_v1,
            v1_config(12, 8, head="box"),
            stages=("end to end",),
        ),
        Source(
            "torchvision fasterrcnn v2, narrow",
            reference.fasterrcnn_v2,
            v2_config(12, 8, head="box"),
            stages=("pooling", "end to end"),
            **_LARGE,
        ),
        Source(
            "torchvision keypointrcnn v1, narrow",
            reference.keypointrcnn_v1,
            v1_config(1, 8, head="keypoint"),
            stages=("keypoint head", "end to end"),
            trained=_BOTH,
            data="coco_person_kp",
            seed=1,
        ),
    )
}
FULL_WIDTH = tuple(name for name, source in SOURCES.items() if source.narrowing == 1)
NARROW = tuple(name for name in SOURCES if name not in FULL_WIDTH)


@functools.cache
def dataset(name: str, split: str = "val") -> CocoDataset:
    return load_coco(CocoConfig(root=str(shared_folder() / "data" / name)), split)


@functools.lru_cache(maxsize=2)
def case(name: str) -> Case:
    """The source's model with calibrated random weights, run on a few images."""
    source = SOURCES[name]
    records = tuple(dataset(source.data).records[index] for index in IMAGES[source.data])
    images = tuple(read_image(record.path) for record in records)
    model = build(source, images)
    return Case(source, model, imported(source.config, model), records, images, reference.trace(model, images))


def build(source: Source, images: tuple[np.ndarray, ...]) -> nn.Module:
    """The reference with weights calibrated on `images`, in evaluation mode."""
    model = source.build(source.config.num_classes, min_size=source.short_side, max_size=source.max_side)
    if source.narrowing > 1:
        reference.narrow(model, source.narrowing)
    reference.set_frozen_norm_epsilon(model, source.frozen_norm_epsilon)
    return reference.calibrate(model, images, seed=source.seed, spread=source.spread, residual=source.residual)


def imported(config: MaskRCNNConfig, model: nn.Module) -> Variables:
    """The model's weights as this project imports them, in the type that they have there."""
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    variables, _ = pretrained.convert(tensors, config, "torchvision", None)
    return variables


def target(record: Record, num_classes: int) -> dict[str, torch.Tensor]:
    """The annotations that a model is trained on, as torchvision takes them; further classes share the first labels."""
    kept = np.flatnonzero(~record.iscrowd)
    rles = [to_rle(record.segmentations[index], record.height, record.width) for index in kept]
    of_image = {
        "boxes": torch.from_numpy(record.boxes[kept]),
        "labels": torch.from_numpy(record.classes[kept] % num_classes + 1).long(),
        "masks": torch.from_numpy(np.stack([coco_mask.decode(rle) for rle in rles])),
    }
    return of_image if record.keypoints is None else of_image | {"keypoints": torch.from_numpy(record.keypoints[kept])}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dicts by path."""
    found: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: np.asarray(value)}
    return found
