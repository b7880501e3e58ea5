"""Second stage for boxes (Fast R-CNN, https://arxiv.org/abs/1504.08083): sampling, the head, losses, detections.

Shape letters: `P` proposals, `G` ground-truth slots, `R` sampled RoIs, `K` classes, `D` detection slots.

Naming: `class_logits` have K1 = K + 1 columns, background last; `box_deltas` refine a RoI, one set a class: Kd is K,
or 1 where they are class-agnostic.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.models.box_regression import BoxLoss, box_regression_loss
from mask_rcnn_jax.models.context import Inputs
from mask_rcnn_jax.models.heads.classification import (
    ClassLoss,
    FederatedConfig,
    HingeConfig,
    class_loss,
    predicted_classes,
)
from mask_rcnn_jax.models.layers import ConvNorm, Kernel, over_rois
from mask_rcnn_jax.models.layers.initialisers import msra_init, normal_init, xavier_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.losses import Mean, counted, counted_by_iou, masked_mean
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ops.matching import Matches, match_boxes
from mask_rcnn_jax.ops.nms import nms
from mask_rcnn_jax.ops.precision import EXACT, at_least_float32
from mask_rcnn_jax.ops.sampling import sample
from mask_rcnn_jax.ops.soft_nms import Decay, soft_nms
from mask_rcnn_jax.ranges import AboveZero, AddedLater, AtLeastZero, BoxWeights, Channels, Layers, Positive, Share
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, Proposals, SampledRoIs


@dataclass(frozen=True)
class SoftNMSConfig:
    """Detections that overlap better ones lose score, and with test-time augmentation once more as all are merged.

    Candidates are above `score_threshold` before, detections above `min_score` afterwards; a predictor leaves out those
    that are not above its own threshold.
    """

    decay: Decay = "gaussian"
    sigma: AboveZero = 0.5  # gaussian: scores times exp(-IoU^2 / sigma)
    iou_threshold: Share = 0.3  # linear: scores times 1 - IoU, above it
    min_score: Share = 0.001


@dataclass(frozen=True)
class BoxHeadConfig:
    pooler: RoIPoolerConfig = PoolerConfig(output_size=7)
    num_convs: Layers = 0
    conv_channels: Channels = 256
    num_fcs: Layers = 2  # 0 averages the features over their cells instead (C4)
    fc_channels: Channels = 1024
    norm: NormConfig = NormConfig(kind="none")  # of the convolutions
    class_agnostic: bool = False  # one set of box deltas a RoI, not one a class
    foreground_iou: Share = 0.5
    samples: Positive = 512  # an image
    foreground_fraction: Share = 0.25
    box_weights: BoxWeights = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: AtLeastZero = 0.0  # torchvision: 1/9
    score_threshold: Share = 0.05
    nms_iou: Share = 0.5
    max_detections: Positive = 100
    min_box_size: AtLeastZero = 0.0  # detections keep sides above it; torchvision: 1e-2
    max_candidates: Positive = 4096  # box and class pairs that enter NMS, best first
    box_loss: Annotated[BoxLoss, AddedLater()] = "smooth_l1"  # of deltas, or of how boxes overlap
    box_loss_weight: Annotated[AtLeastZero, AddedLater()] = 1.0
    soft_nms: Annotated[SoftNMSConfig | None, AddedLater()] = None  # in the place of NMS by `nms_iou`
    class_loss: Annotated[ClassLoss, AddedLater()] = (
        "softmax"  # over classes and background, or a sigmoid or SVM a class
    )
    federated: Annotated[FederatedConfig | None, AddedLater()] = None  # some classes count in an image, by sigmoids
    hinge: Annotated[HingeConfig, AddedLater()] = HingeConfig()  # what SVMs learn from, with class_loss=hinge

    def __post_init__(self) -> None:
        if self.num_convs:
            self.norm.check_channels("conv_channels", self.conv_channels)
        if self.federated is not None and self.class_loss != "sigmoid":
            raise ValueError("a federated loss counts some classes of an image: set class_loss=sigmoid")
        if self.foreground_slots < 1:
            raise ValueError(
                f"samples {self.samples} x foreground_fraction {self.foreground_fraction} leave no room for foreground;"
                " the product must be at least 1"
            )

    @property
    def foreground_slots(self) -> int:
        """The first slots of the sampled RoIs, which alone can be foreground."""
        return int(self.samples * self.foreground_fraction)

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "BoxHead":
        return BoxHead(self, *inputs.of_rois(self.pooler), inputs.num_classes, rngs=rngs)

    def check(self, inputs: Inputs) -> None:
        """Raise ValueError, naming the setting, where the head cannot be built for these inputs."""
        inputs.check_poolers(self)
        if self.federated is not None:
            self.federated.check(inputs.num_classes)


class BoxHead(nnx.Module):
    """Convolutions, fully connected layers, then class logits and box deltas."""

    recomputed = False

    def __init__(self, config: BoxHeadConfig, in_channels: int, side: int, num_classes: int, *, rngs: nnx.Rngs):
        self.num_convs, self.num_fcs = config.num_convs, config.num_fcs
        channels = in_channels
        for i in range(config.num_convs):
            conv = ConvNorm(channels, config.conv_channels, Kernel(3), norm=config.norm, init=msra_init, rngs=rngs)
            setattr(self, f"conv{i + 1}", conv)
            channels = config.conv_channels
        features = channels * side**2 if config.num_fcs else channels
        for i in range(config.num_fcs):
            setattr(self, f"fc{i + 1}", nnx.Linear(features, config.fc_channels, kernel_init=xavier_init, rngs=rngs))
            features = config.fc_channels
        self.class_logits = nnx.Linear(features, num_classes + 1, kernel_init=normal_init(0.01), rngs=rngs)
        outputs = 4 if config.class_agnostic else num_classes * 4
        self.box_deltas = nnx.Linear(features, outputs, kernel_init=normal_init(0.001), rngs=rngs)

    @jax.named_scope("box_head")
    def __call__(
        self, roi_features: Float[Array, "B R P P C"], valid: Bool[Array, "B R"]
    ) -> tuple[Float[Array, "B R K1"], Float[Array, "B R Kd 4"]]:
        """Class logits and box deltas of each RoI; those that are not `valid` leave a batch norm's statistics alone."""
        batch, rois = valid.shape
        x = over_rois(self, self._convs, valid, roi_features, valid) if self.num_convs else roi_features
        x = x.reshape(batch * rois, -1) if self.num_fcs else jnp.mean(x, axis=(2, 3)).reshape(batch * rois, -1)
        for i in range(self.num_fcs):
            x = jax.nn.relu(getattr(self, f"fc{i + 1}")(x))
        logits = self.class_logits(x).reshape(batch, rois, -1)
        deltas = self.box_deltas(x).reshape(batch, rois, -1, 4)
        return at_least_float32(logits), at_least_float32(deltas)

    def _convs(self, x: Float[Array, "R P P _"], valid: Bool[Array, " R"]) -> Float[Array, "R P P _"]:
        for i in range(self.num_convs):
            x = jax.nn.relu(getattr(self, f"conv{i + 1}")(x, valid))
        return x


def match_rois(config: BoxHeadConfig, boxes: Float[Array, "R 4"], truth: GroundTruth) -> Matches:
    """The ground truth of each box, foreground from the head's IoU on, else background."""
    return match_boxes(
        boxes,
        truth.boxes,
        truth.valid,
        background=config.foreground_iou,
        foreground=config.foreground_iou,
        low_quality=False,
    )


def matched_rois(
    rois: SampledRoIs, truth: GroundTruth, levels: Int[Array, " R"], level_names: tuple[str, ...]
) -> dict[str, Mean]:
    """Of one image: how many of the RoIs have which IoU, and how many of the foreground are of which level."""
    iou = box_ops.paired_iou(rois.boxes, truth.boxes[rois.gt_index])
    return counted_by_iou("histogram/rois_by_iou", iou, rois.valid) | {
        f"histogram/rois_by_level/{name}": counted(rois.foreground & (levels == index))
        for index, name in enumerate(level_names)
    }


@jax.named_scope("sample_rois")
def sample_rois(
    config: BoxHeadConfig,
    num_classes: int,
    proposals: Proposals,
    truth: GroundTruth,
    priority: Float[Array, " PG"],
) -> SampledRoIs:
    """Draws the RoIs of one image from its proposals and ground-truth boxes, which join at the end.

    `priority` (proposals, then ground truth) decides the draw: candidates with the highest values are taken.
    """
    boxes = jnp.concatenate([proposals.boxes, truth.boxes])
    valid = jnp.concatenate([proposals.valid, truth.valid])
    matches = match_rois(config, boxes, truth)
    label = jnp.where(valid, matches.label, -1)
    drawn = sample(label, priority, num=config.samples, foreground_fraction=config.foreground_fraction)
    gt_index = matches.gt_index[drawn.indices]
    return SampledRoIs(
        boxes=jnp.where(drawn.valid[:, None], boxes[drawn.indices], 0.0),
        gt_index=gt_index,
        classes=jnp.where(drawn.foreground, truth.classes[gt_index], num_classes),
        foreground=drawn.foreground,
        valid=drawn.valid,
    )


@jax.named_scope("box_losses")
def box_losses(
    config: BoxHeadConfig,
    class_logits: Float[Array, "R K1"],
    box_deltas: Float[Array, "R Kd 4"],
    rois: SampledRoIs,
    truth: GroundTruth,
) -> dict[str, Mean]:
    """Losses of one image: classes of all sampled RoIs, and boxes of the foreground, over the same count."""
    classification = class_loss(config.class_loss, class_logits, rois, config.hinge)
    deltas = _of_class(config, box_deltas, rois)
    boxes = box_regression_loss(config, deltas, rois.boxes, truth.boxes[rois.gt_index], rois.foreground)
    correct = predicted_classes(config.class_loss, class_logits) == rois.classes
    return {
        "loss/box_class": classification,
        "loss/box": Mean(boxes, classification.count),
        "box/accuracy": masked_mean(correct, rois.valid),
        "box/foreground_accuracy": masked_mean(correct, rois.foreground),
        "box/foreground_rois": Mean(jnp.sum(at_least_float32(rois.foreground)), jnp.float32(1)),
    }


def predicted_boxes(
    config: BoxHeadConfig, box_deltas: Float[Array, "R Kd 4"], rois: SampledRoIs
) -> Float[Array, "R 4"]:
    """Return the box that is made of each RoI for its class, which may leave the image. No gradient flows through."""
    deltas = jax.lax.stop_gradient(_of_class(config, box_deltas, rois))
    return box_ops.decode(deltas, rois.boxes, config.box_weights)


def _of_class(config: BoxHeadConfig, box_deltas: Float[Array, "R Kd 4"], rois: SampledRoIs) -> Float[Array, "R 4"]:
    """Return the deltas for the class of each RoI; zeros for background, where they are not class-agnostic."""
    classes = jnp.zeros_like(rois.classes) if config.class_agnostic else rois.classes
    of_class = jax.nn.one_hot(classes, box_deltas.shape[1], dtype=box_deltas.dtype)
    return jnp.einsum("rk,rkc->rc", of_class, box_deltas, precision=EXACT)


@jax.named_scope("detect_boxes")
def detect_boxes(
    config: BoxHeadConfig,
    class_scores: Float[Array, "P K1"],
    box_deltas: Float[Array, "P Kd 4"],
    proposals: Proposals,
    image_size: Int[Array, "2"],
) -> PaddedDetections:
    """Detections of one image, without masks: classes of proposals above the threshold, after NMS within the class.

    `class_scores` are probabilities, by `classification.class_scores`.
    """
    scores = class_scores[:, :-1]
    num_classes = scores.shape[1]
    eligible = proposals.valid[:, None] & (scores > config.score_threshold)
    # Candidates are found before any box is decoded: few pairs of box and class pass the threshold.
    order = jnp.where(eligible, scores, -1.0).reshape(-1)
    order, pairs = jax.lax.top_k(order, min(config.max_candidates, order.shape[0]))
    proposal, classes = pairs // num_classes, pairs % num_classes
    deltas = box_deltas[proposal, jnp.zeros_like(classes) if config.class_agnostic else classes]
    boxes = box_ops.decode(deltas, proposals.boxes[proposal], config.box_weights)
    finite = jnp.isfinite(boxes).all(axis=-1)
    boxes = box_ops.clip(jnp.where(finite[:, None], boxes, 0.0), image_size)
    valid = (order > config.score_threshold) & finite & box_ops.nonempty(boxes, config.min_box_size)
    return suppress(config, boxes, order, classes, valid)


def suppress(
    config: BoxHeadConfig,
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    classes: Int[Array, " N"],
    valid: Bool[Array, " N"],
) -> PaddedDetections:
    """Return the best of the boxes of one image, without those that better ones of their class suppress."""
    if config.soft_nms is None:
        keep = nms(boxes, scores, valid, config.nms_iou, config.max_detections, classes=classes)
        scores = jnp.where(keep.valid, scores[keep.indices], 0.0)
    else:
        keep = soft_nms(boxes, scores, valid, config.max_detections, **vars(config.soft_nms), classes=classes)
        scores = keep.scores
    return PaddedDetections(
        boxes=jnp.where(keep.valid[:, None], boxes[keep.indices], 0.0),
        scores=scores,
        classes=jnp.where(keep.valid, classes[keep.indices], 0),
        masks=None,
        valid=keep.valid,
    )
