"""Tiny models to export, what they find in images the ordinary way, and the comparison of two paths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data.augment import transforms
from mask_rcnn_jax.export.program import Exportable, ExportSettings
from mask_rcnn_jax.export.resize import Preprocessing
from mask_rcnn_jax.inference import Detections, predict
from mask_rcnn_jax.models import (
    KeypointHeadConfig,
    MaskRCNNConfig,
    MLPMaskHeadConfig,
    NormConfig,
    ResNetConfig,
    RoIPoolConfig,
    Variables,
    architectures,
    init,
    torchvision,
)
from mask_rcnn_jax.structures import EvalBatch
from tests import probabilities
from tests.tiny import tiny_model, tiny_pooler

CLASS_NAMES = ("square", "disc", "star")
INPUT = (80, 100)
CANVAS = (64, 96)
KEYPOINT_HEAD = KeypointHeadConfig(tiny_pooler(14), num_convs=1, channels=16, num_keypoints=3)


def config(name: str) -> MaskRCNNConfig:
    """`fpn` with masks and keypoints, `torchvision`, `cascade` without masks, `c4`, `roi_pool` with masks, `softmax`
    with those of a softmax from the highest samples of RoIAlign, or `mlp` with those of fully connected layers.
    """
    model = _config(name)
    return replace(model, box_head=replace(model.box_head, max_detections=30, score_threshold=0.01))


def _config(name: str) -> MaskRCNNConfig:
    tiny = replace(tiny_model(), num_classes=len(CLASS_NAMES))
    if name == "fpn":
        return replace(tiny, keypoint_head=KEYPOINT_HEAD)
    if name == "roi_pool":
        places: Any = {"features": ("p2", "p3"), "canonical_size": 32.0, "canonical_level": 3}
        box, mask = (RoIPoolConfig(output_size=side, **places) for side in (7, 14))
        return replace(
            tiny, box_head=replace(tiny.box_head, pooler=box), mask_head=replace(tiny.mask_head, pooler=mask)
        )
    if name == "softmax":
        box, mask = (replace(tiny_pooler(side), reduction="max") for side in (7, 14))
        heads = replace(tiny.box_head, pooler=box), replace(tiny.mask_head, pooler=mask, mask_loss="softmax")
        return replace(tiny, box_head=heads[0], mask_head=heads[1])
    if name == "mlp":
        return replace(tiny, mask_head=MLPMaskHeadConfig(tiny_pooler(7), fc_channels=16, mask_size=14))
    if name == "cascade":
        return architectures.cascade(replace(tiny, mask_head=None))
    if name == "c4":
        norm = NormConfig(kind="group_norm", groups=4)
        model = architectures.c4(ResNetConfig(depth=50, width=8, norm=norm, freeze_at=0), len(CLASS_NAMES))
        return replace(model, rpn=replace(model.rpn, sizes=((8.0, 16.0, 32.0),), pre_nms_test=64, post_nms_test=32))
    return torchvision(tiny)


def exportable(name: str, batch: int | None = 2, paste_masks: bool = False) -> Exportable:
    """A model whose random weights find many things of all classes."""
    model = config(name)
    convention = "torchvision" if name == "torchvision" else "detectron2"
    settings = ExportSettings(INPUT, Preprocessing(64, 96, CANVAS, convention), batch, paste_masks)
    return Exportable(model, lively(init(model, jax.random.key(0))), CLASS_NAMES, settings)


def lively(variables: Variables) -> Variables:
    """Larger weights of what is predicted: as initialised, all classes are as likely and no box moves."""
    factors = {"class_logits": 8.0, "box_deltas": 50.0, "deltas": 10.0, "objectness": 10.0, "predictor_kernel": 300.0}
    factors |= {"prediction": 300.0}

    def scale(path: tuple, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return leaf * next((factor for name, factor in factors.items() if name in names), 1.0)

    return jax.tree_util.tree_map_with_path(scale, variables)


def pictures() -> list[np.ndarray]:
    """Random images of several sizes, smooth enough to survive resizing."""
    rng = np.random.default_rng(0)
    sizes = [(50, 60), (64, 64), (80, 100), (33, 47)]
    coarse = [rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8) for height, width in sizes]
    return [image.repeat(8, 0).repeat(8, 1)[:h, :w] for image, (h, w) in zip(coarse, sizes, strict=True)]


def ordinary(model: Exportable, images: Sequence[np.ndarray]) -> list[Detections]:
    """The detections of evaluation: images that are resized outside the program."""
    found = predict(model.config, model.variables, _batches(model, images), probabilities.detect)
    return [detections for _, detections in found]


def _batches(model: Exportable, images: Sequence[np.ndarray]) -> Iterator[EvalBatch]:
    settings = model.settings.preprocessing
    for start in range(0, len(images), 2):
        part = images[start : start + 2]
        kind = np.uint8 if settings.convention == "detectron2" else np.float32
        pixels, sizes = np.zeros((2, *settings.canvas, 3), kind), np.zeros((2, 2), np.int32)
        for row, image in enumerate(part):
            limits = settings.short_side, settings.max_side, settings.convention
            size = transforms.resized_size(*image.shape[:2], *limits)
            pixels[row, : size[0], : size[1]], sizes[row] = transforms.resize(image, size, settings.convention), size
        yield EvalBatch(
            images=pixels,
            image_sizes=sizes,
            original_sizes=np.array([image.shape[:2] for image in part], np.int32),
            image_ids=np.arange(start, start + 2),
            valid=np.ones(2, bool),
        )


def assert_same(found: Mapping[str, np.ndarray], expected: Detections, pasted: bool = False) -> None:
    """Within the bounds of the conformance tests."""
    assert len(expected.boxes) > 0
    np.testing.assert_array_equal(found["classes"], expected.classes)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=5e-4)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=0.05)
    assert ("masks" in found) == (expected.rles is not None)
    assert ("keypoints" in found) == (expected.keypoints is not None)
    if expected.keypoints is not None:
        np.testing.assert_allclose(found["keypoints"], expected.keypoints, atol=0.05)
    if expected.rles is not None and not pasted:
        np.testing.assert_allclose(found["masks"], expected.extras[probabilities.NAME], atol=2e-4)
    if expected.rles is not None and pasted:
        bitmaps = np.stack([coco_mask.decode(rle) for rle in expected.rles])
        assert found["masks"].shape == bitmaps.shape
        assert np.mean(found["masks"] != bitmaps) < 1e-4
