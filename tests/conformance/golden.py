"""What Detectron2 recorded of narrow members of its family (`golden/detectron2` of the shared folder).

Random and calibrated, two images each; torch's layout, NCHW.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from mask_rcnn_jax import models
from mask_rcnn_jax.models import (
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    PointRendConfig,
    PoolerConfig,
    ResNetConfig,
    RPNConfig,
    SemanticHeadConfig,
    SimplePyramidConfig,
    ViTConfig,
    architectures,
)
from mask_rcnn_jax.pretrained import convert, read_tensors
from mask_rcnn_jax.structures import IGNORED, Batch, GroundTruth, Proposals
from tests.conformance.torch_resnet import TorchBackbone

NAMES = (
    "fpn",
    "c4",
    "dc5",
    "x101_fpn",
    "cascade",
    "keypoint",
    "pointrend",
    "fast_rcnn",
    "fast_rcnn/roialign",
    "panoptic_fpn",
    "vitdet",
    "detectron1",
)
IMAGES = (0, 1)


class Golden:
    """A recorded model: its tensors, its configuration here, and its weights in it."""

    def __init__(self, shared: Path, name: str):
        folder = shared / "golden" / "detectron2"
        file, _, variant = name.partition("/")  # a variant has the weights of the file's model
        tensors = load_file(folder / f"{file}.safetensors")
        of_variant = [key for key in tensors if key.partition("/")[0] == variant]
        tensors |= {key.removeprefix(f"{variant}/"): tensors[key] for key in of_variant}
        self.name = f"detectron2 {name}"
        self.json = json.loads((folder / f"{file}.json").read_text())
        self.json |= self.json.get(variant, {})
        self.tensors = {key: value for key, value in tensors.items() if not key.startswith("weights/")}
        self.weights = {
            key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")
        }
        self.config = config(name)
        if "batch" not in self.tensors:
            self.tensors["batch"] = self._normalised(self.json["batch_shape"])
        if name == "detectron1":  # as Detectron wrote it; the reference has read the same file
            self.variables, _ = convert(read_tensors(folder / f"{file}.pkl"), self.config, "detectron1", None)
        else:
            self.variables, _ = convert(self.weights, self.config, "detectron2", None)
        self.model = models.networks(self.config, self.variables)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.tensors[key]

    def _normalised(self, shape: list[int]) -> np.ndarray:
        """The input that the reference makes of its images."""
        batch = np.zeros(shape, np.float32)
        mean, std = (
            np.array(values, np.float32)[self._order, None, None]
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        for i, image in enumerate(self.of_images("image")):
            batch[i, :, : image.shape[1], : image.shape[2]] = (image - mean) / std
        return batch

    @property
    def _order(self) -> slice:
        """The reference's channels, in which its images are recorded, from RGB."""
        return slice(None, None, -1 if self.config.channel_order == "bgr" else 1)

    def of_images(self, key: str) -> list[np.ndarray]:
        return [self[f"{key}_{i}"] for i in IMAGES]

    @functools.cached_property
    def features(self) -> dict[str, jax.Array]:
        names = [key for key in self.tensors if key.startswith("feature_")]
        return {key.removeprefix("feature_"): jnp.asarray(nhwc(self[key])) for key in sorted(names)}

    @functools.cached_property
    def inside_backbone(self) -> dict[str, np.ndarray]:
        """What the reference's stages give, NCHW."""
        return TorchBackbone(self.weights, self.config.backbone)(self["batch"])

    @functools.cached_property
    def other_features(self) -> dict[str, jax.Array] | None:
        """`features` as the reference computes them with other kernels; None where they are not a ResNet's."""
        if isinstance(self.config.backbone, SimplePyramidConfig):
            return None
        outputs = TorchBackbone(self.weights, self.config.backbone)(self["batch"], onednn=False)
        return {name: jnp.asarray(nhwc(outputs[name])) for name in self.features}

    @functools.cached_property
    def rpn_outputs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Logits [B, N] and deltas [B, N, 4] by level."""
        levels = range(len(self.config.rpn.features))
        logits = [nhwc(self[f"rpn_logits_{level}"]).reshape(len(IMAGES), -1) for level in levels]
        deltas = [nhwc(self[f"rpn_deltas_{level}"]).reshape(len(IMAGES), -1, 4) for level in levels]
        return logits, deltas

    @functools.cached_property
    def proposals(self) -> Proposals:
        boxes, logits = (np.concatenate(self.of_images(key)) for key in ("proposals", "proposal_logits"))
        return jax.tree.map(jnp.asarray, Proposals(self._in_slots(boxes), self._in_slots(logits), self._slots))

    @property
    def given(self) -> Proposals | None:
        """The proposals that come with the images, where the model makes none."""
        return None if isinstance(self.config.rpn, RPNConfig) else self.proposals

    @functools.cached_property
    def _slots(self) -> np.ndarray:
        """The slots [B, P] that hold a proposal: images may have different numbers of them."""
        counts = np.array([len(boxes) for boxes in self.of_images("proposals")])
        return np.arange(counts.max()) < counts[:, None]

    def _in_slots(self, of_proposals: np.ndarray) -> np.ndarray:
        """Give each image slots of its own for what the reference has of the proposals of all."""
        result = np.zeros((*self._slots.shape, *of_proposals.shape[1:]), of_proposals.dtype)
        result[self._slots] = of_proposals
        return result

    @functools.cached_property
    def predictions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Class logits [B, P, K + 1] and deltas [B, P, Kd, 4] of each stage."""
        stages = [""] if self.config.cascade is None else [f"_{i}" for i in range(3)]
        deltas = [self[f"box_predictor{stage}_deltas"] for stage in stages]
        return [
            (self._in_slots(self[f"box_predictor{stage}_class_logits"]), self._in_slots(x.reshape(len(x), -1, 4)))
            for stage, x in zip(stages, deltas, strict=True)
        ]

    @functools.cached_property
    def images(self) -> np.ndarray:
        """RGB uint8 on the reference's canvas."""
        images = np.zeros((len(IMAGES), *self["batch"].shape[2:], 3), np.uint8)
        for i, image in enumerate(self.of_images("image")):
            images[i, : image.shape[1], : image.shape[2]] = image.transpose(1, 2, 0)[..., self._order]
        return images

    @property
    def sizes(self) -> np.ndarray:
        return self["image_sizes"].astype(np.int32)

    def batch(self) -> Batch:
        """Both images with full bitmaps as masks."""
        slots = max(len(boxes) for boxes in self.of_images("gt_boxes"))
        height, width = self["batch"].shape[2:]
        boxes, classes = np.zeros((2, slots, 4), np.float32), np.zeros((2, slots), np.int32)
        masks, valid = np.zeros((2, slots, height, width), np.uint8), np.zeros((2, slots), bool)
        keypoints = np.zeros((2, slots, 17, 3), np.float32) if self.config.keypoint_head else None
        for i in IMAGES:
            count = len(self[f"gt_boxes_{i}"])
            boxes[i, :count], classes[i, :count], valid[i, :count] = (
                self[f"gt_boxes_{i}"],
                self[f"gt_classes_{i}"],
                True,
            )
            if f"gt_masks_{i}" in self.tensors:
                bitmaps = self[f"gt_masks_{i}"]
                masks[i, :count, : bitmaps.shape[1], : bitmaps.shape[2]] = 255 * bitmaps
            if keypoints is not None:
                keypoints[i, :count] = self[f"gt_keypoints_{i}"]
        regions = np.broadcast_to(np.array([0, 0, width, height], np.float32), boxes.shape)
        truth = GroundTruth(boxes, classes, masks, valid, keypoints, regions, self._semantic((height, width)))
        batch = Batch(self.images, self.sizes, truth, np.arange(2, dtype=np.int32), self.given)
        return jax.tree.map(jnp.asarray, batch)

    def _semantic(self, padded_size: tuple[int, int]) -> np.ndarray | None:
        """The kind of stuff at each pixel of both images, padding ignored."""
        if "gt_sem_seg_0" not in self.tensors:
            return None
        labels = np.full((len(IMAGES), *padded_size), IGNORED, np.uint8)
        for i, of_image in enumerate(self.of_images("gt_sem_seg")):
            labels[i, : of_image.shape[0], : of_image.shape[1]] = of_image
        return labels


def config(name: str) -> MaskRCNNConfig:
    """What `NAME.yaml` says, in this project's words."""
    if name == "vitdet":
        return _vitdet()
    if name == "pointrend":
        return _point_rend()
    if name == "detectron1":
        return _detectron1()
    if name.startswith("fast_rcnn"):
        return _fast_rcnn(PoolerConfig(aligned=False) if name.endswith("roialign") else None)
    if name == "panoptic_fpn":
        return _panoptic_fpn()
    resnet = ResNetConfig(width=8, stem_width=16)
    if name == "x101_fpn":
        resnet = replace(resnet, depth=101, groups=4, width_per_group=4, stride_in_1x1=False)
    if name in ("c4", "dc5"):
        model = architectures.c4(resnet, 12) if name == "c4" else architectures.dc5(resnet, 12)
    else:
        model = MaskRCNNConfig(num_classes=12, backbone=FPNConfig(bottom_up=resnet, channels=32))
    if name == "cascade":
        model = architectures.cascade(model)
    if name == "keypoint":
        model = architectures.keypoints(model)
    if name == "x101_fpn":
        model = replace(model, pixel_std=(58.395, 57.12, 57.375))
    keypoint_head = model.keypoint_head and replace(model.keypoint_head, channels=32)
    return replace(
        model,
        rpn=replace(model.rpn, pre_nms_train=800, pre_nms_test=500, post_nms_train=300, post_nms_test=200),
        box_head=replace(model.box_head, fc_channels=64, samples=128),
        mask_head=model.mask_head and replace(model.mask_head, channels=32),
        keypoint_head=keypoint_head,
    )


def _point_rend() -> MaskRCNNConfig:
    backbone = FPNConfig(bottom_up=ResNetConfig(width=4, stem_width=8), channels=16)
    model = architectures.point_rend(MaskRCNNConfig(num_classes=12, backbone=backbone))
    assert isinstance(model.mask_head, PointRendConfig)
    return replace(
        model,
        rpn=replace(model.rpn, pre_nms_train=800, pre_nms_test=500, post_nms_train=300, post_nms_test=200),
        box_head=replace(model.box_head, fc_channels=48, samples=128, max_detections=50),
        mask_head=replace(model.mask_head, coarse_channels=16, coarse_fc_channels=64, point_channels=24),
    )


def _vitdet() -> MaskRCNNConfig:
    vit = ViTConfig(channels=64, depth=4, heads=4, window=7, global_blocks=(1, 3), image_size=256, drop_path=0.0)
    model = architectures.vitdet(vit, 12)
    assert isinstance(model.mask_head, MaskHeadConfig)
    return replace(
        model,
        backbone=SimplePyramidConfig(vit, channels=16),
        rpn=replace(model.rpn, pre_nms_train=800, pre_nms_test=500, post_nms_train=300, post_nms_test=200),
        box_head=replace(model.box_head, conv_channels=16, fc_channels=48, samples=128, max_detections=50),
        mask_head=replace(model.mask_head, channels=16),
    )


def _panoptic_fpn() -> MaskRCNNConfig:
    backbone = FPNConfig(bottom_up=ResNetConfig(width=4, stem_width=8), channels=16)
    model = MaskRCNNConfig(num_classes=12, backbone=backbone)
    return replace(
        model,
        rpn=replace(model.rpn, pre_nms_train=800, pre_nms_test=500, post_nms_train=300, post_nms_test=200),
        box_head=replace(model.box_head, fc_channels=48, samples=128, max_detections=50),
        mask_head=model.mask_head and replace(model.mask_head, channels=16),
        heads=(SemanticHeadConfig(num_kinds=8, channels=64),),
    )


def _fast_rcnn(pooler: PoolerConfig | None) -> MaskRCNNConfig:
    backbone = FPNConfig(bottom_up=ResNetConfig(width=4, stem_width=8), channels=16)
    model = architectures.fast_rcnn(MaskRCNNConfig(num_classes=12, backbone=backbone))
    box_head = replace(model.box_head, fc_channels=48, samples=128, max_detections=50)
    return replace(model, box_head=replace(box_head, pooler=pooler or box_head.pooler))


def _detectron1() -> MaskRCNNConfig:
    backbone = FPNConfig(bottom_up=ResNetConfig(width=4, stem_width=8), channels=16)
    pooler = PoolerConfig(aligned=False, sampling_ratio=2)
    model = MaskRCNNConfig(num_classes=12, backbone=backbone)
    return replace(
        model,
        rpn=replace(
            model.rpn,
            smooth_l1_beta=0.1111,
            pre_nms_train=800,
            pre_nms_test=500,
            post_nms_train=300,
            post_nms_test=200,
        ),
        box_head=replace(
            model.box_head, pooler=pooler, smooth_l1_beta=1.0, fc_channels=48, samples=128, max_detections=50
        ),
        mask_head=model.mask_head and replace(model.mask_head, pooler=replace(pooler, output_size=14), channels=16),
    )


def nhwc(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(0, 2, 3, 1)
