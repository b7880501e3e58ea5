"""A Mask R-CNN small enough to compile and train within a test, batches for it, and an experiment with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn_jax.data import DataConfig, ShapesConfig
from mask_rcnn_jax.models import (
    BoxHeadConfig,
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PoolerConfig,
    ResNetConfig,
    RPNConfig,
)
from mask_rcnn_jax.structures import Batch, GroundTruth
from mask_rcnn_jax.training import CosineDecay, ExperimentConfig, ScheduleConfig


def tiny_model(norm: NormConfig | None = None) -> MaskRCNNConfig:
    """One block in each of two stages, a pyramid on them, 64 px images, the six classes of shapes.

    Tests that take this model, eight images of `tiny_batch` or `tiny_experiment`, and all devices share a program.
    """
    norm = norm or NormConfig(kind="group_norm", groups=4)
    bottom_up = ResNetConfig(depth=10, width=8, norm=norm, out_features=("res2", "res3"), freeze_at=0)
    return MaskRCNNConfig(
        num_classes=6,
        backbone=FPNConfig(bottom_up=bottom_up, channels=16),
        rpn=RPNConfig(
            features=("p2", "p3", "p4"),
            sizes=((8.0, 16.0), (24.0, 32.0), (48.0, 64.0)),
            samples=32,
            pre_nms_train=64,
            pre_nms_test=64,
            post_nms_train=64,
            post_nms_test=32,
        ),
        box_head=BoxHeadConfig(pooler=tiny_pooler(7), fc_channels=32, samples=16, max_detections=10),
        mask_head=MaskHeadConfig(pooler=tiny_pooler(14), num_convs=1, channels=16),
        pixel_mean=(127.5, 127.5, 127.5),
        pixel_std=(64.0, 64.0, 64.0),
        channel_order="rgb",
    )


def one_map_model() -> MaskRCNNConfig:
    """The tiny model without a pyramid, for what does not depend on levels: it is traced and compiled in less time."""
    tiny, features = tiny_model(), ("res3",)
    return replace(
        tiny,
        backbone=replace(tiny.backbone.bottom_up, out_features=features),
        rpn=replace(tiny.rpn, features=features, sizes=((16.0, 32.0),)),
        box_head=replace(tiny.box_head, pooler=PoolerConfig(output_size=7, features=features)),
        mask_head=replace(tiny.mask_head, pooler=PoolerConfig(output_size=14, features=features)),
    )


def smallest_model() -> MaskRCNNConfig:
    """A Faster R-CNN on one map, for what runs do whatever they train."""
    return replace(one_map_model(), mask_head=None)


def tiny_pooler(output_size: int) -> PoolerConfig:
    """From the two levels of the tiny model; RoIs of 32 px and more belong to the coarser one."""
    return PoolerConfig(output_size=output_size, features=("p2", "p3"), canonical_size=32.0, canonical_level=3)


def tiny_batch(size: int = 2, *, slots: int = 4, side: int = 64, seed: int = 0) -> Batch:
    """Rectangles of three colours, one class each, on grey; every image has one to three, and spare slots."""
    rng = np.random.default_rng(seed)
    images = np.full((size, side, side, 3), 128, np.uint8)
    boxes = np.zeros((size, slots, 4), np.float32)
    classes = np.zeros((size, slots), np.int32)
    valid = np.zeros((size, slots), bool)
    for row in range(size):
        for slot in range(int(rng.integers(1, min(slots, 3) + 1))):
            x1, y1 = rng.integers(0, side // 2, 2)
            width, height = rng.integers(side // 4, side // 2, 2)
            classes[row, slot] = rng.integers(3)
            images[row, y1 : y1 + height, x1 : x1 + width] = np.eye(3)[classes[row, slot]] * 255
            boxes[row, slot] = x1, y1, x1 + width, y1 + height
            valid[row, slot] = True
    masks = np.where(valid[..., None, None], np.uint8(255), np.uint8(0)) * np.ones((16, 16), np.uint8)
    truth = GroundTruth(boxes, classes, masks, valid)
    return Batch(images, np.full((size, 2), side, np.int32), truth, np.arange(size, dtype=np.int32))


def with_more_slots(batch: Batch, extra: int) -> Batch:
    """The same batch with `extra` padding slots of ground truth."""

    def pad(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, 0), (0, extra)] + [(0, 0)] * (array.ndim - 2))

    truth = batch.ground_truth
    return replace(
        batch, ground_truth=GroundTruth(pad(truth.boxes), pad(truth.classes), pad(truth.masks), pad(truth.valid))
    )


def tiny_experiment(root: Path, **changes: Any) -> ExperimentConfig:
    """Four steps on sixteen 64 px shapes, which are written below `root`."""
    source = ShapesConfig(
        root=str(root / "shapes"),
        num_train=16,
        num_val=4,
        image_size=64,
        min_shape_size=16,
        max_shape_size=32,
        max_shapes=3,
    )
    config = ExperimentConfig(
        model=tiny_model(),
        data=DataConfig(
            source=source,
            short_side=(64,),
            short_side_eval=64,
            max_side=64,
            canvas=(64, 64),
            max_instances=4,
            mask_crop=16,
            num_workers=0,
        ),
        schedule=ScheduleConfig(learning_rate=0.01, warmup_steps=2, decay=CosineDecay()),
        steps=4,
        batch_size=8,
        log_every=1,
        eval_every=0,
        checkpoint_every=2,
    )
    return replace(config, **changes)
