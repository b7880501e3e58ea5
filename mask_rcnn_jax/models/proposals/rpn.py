"""Region proposal network (Ren et al. 2015, https://arxiv.org/abs/1506.01497).

Shape letters: `B` images, `H W` height and width of a level, `A` anchors a cell, `N` anchors of an image (all levels,
or one level where said), `G` ground-truth slots, `P` proposals.

Naming: `pred_` is what the network gives, `gt_` comes from annotations, `objectness_logits` score anchors,
`anchor_deltas` refine them.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from mask_rcnn_jax.models.box_regression import BoxLoss, box_regression_loss
from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms, priorities
from mask_rcnn_jax.models.layers import ConvNorm, Kernel, call
from mask_rcnn_jax.models.layers.initialisers import normal_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.losses import Mean, binary_cross_entropy, counted, counted_by_iou, masked_mean
from mask_rcnn_jax.models.proposals.base import Losses, ProposalsConfig, ProposalSource
from mask_rcnn_jax.ops import anchors as anchor_ops
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ops.matching import match_boxes
from mask_rcnn_jax.ops.nms import nms
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.ops.sampling import sample, top_k
from mask_rcnn_jax.ranges import AboveZero, AddedLater, AtLeastZero, BoxWeights, Items, Layers, Positive, Share
from mask_rcnn_jax.structures import GroundTruth, Proposals

_ANCHORS = 0  # the sampler of anchors among those that share an image's key


@dataclass(frozen=True)
class RPNConfig(ProposalsConfig):
    features: Annotated[tuple[str, ...], Items(1)] = ("p2", "p3", "p4", "p5", "p6")
    # One tuple per level, all of the same length.
    sizes: tuple[Annotated[tuple[AboveZero, ...], Items(1)], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    ratios: Annotated[tuple[AboveZero, ...], Items(1)] = (0.5, 1.0, 2.0)  # height / width
    rounded_anchors: bool = False  # torchvision rounds the anchors of a cell
    anchor_stride: Literal["nominal", "grid"] = "nominal"  # torchvision: padded side // grid side
    num_convs: Layers = 1
    background_iou: Share = 0.3
    foreground_iou: Share = 0.7
    samples: Positive = 256
    foreground_fraction: Share = 0.5
    box_weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: AtLeastZero = 0.0  # torchvision: 1/9
    normalizer: Literal["constant", "sampled"] = "constant"  # losses divided by samples x images, or those drawn
    pre_nms_train: Positive = 2000  # a level
    pre_nms_test: Positive = 1000
    post_nms_train: Positive = 1000  # an image; torchvision: 2000
    post_nms_test: Positive = 1000
    nms_iou: Share = 0.7
    min_box_size: AtLeastZero = 0.0  # proposals keep sides above it; torchvision: 1e-3
    box_loss: Annotated[BoxLoss, AddedLater()] = "smooth_l1"  # of deltas, or of how boxes overlap
    box_loss_weight: Annotated[AtLeastZero, AddedLater()] = 1.0

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.features):
            raise ValueError(f"sizes must be one tuple for each of {len(self.features)} features, not {self.sizes}")
        if len({len(sizes) for sizes in self.sizes}) > 1:
            raise ValueError(f"sizes must be as many on each level, not {self.sizes}")
        if self.background_iou > self.foreground_iou:
            raise ValueError(
                f"background_iou {self.background_iou} must not be above foreground_iou {self.foreground_iou}"
            )

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "RPNHead":
        return RPNHead(self, inputs.channels(self.features, "features"), rngs=rngs)

    def check(self, inputs: Inputs) -> None:
        inputs.channels(self.features, "features")


class RPNHead(ProposalSource):
    """Scores and refines the anchors of each level with shared convolutions."""

    def __init__(self, config: RPNConfig, in_channels: int, *, rngs: nnx.Rngs):
        self.config = config
        init, bias_only = normal_init(0.01), NormConfig(kind="none")
        self.num_convs = config.num_convs
        for i in range(config.num_convs):
            conv = ConvNorm(in_channels, in_channels, Kernel(3), norm=bias_only, init=init, rngs=rngs)
            setattr(self, f"conv{i + 1}", conv)
        anchors_a_cell = len(config.sizes[0]) * len(config.ratios)
        self.objectness = ConvNorm(in_channels, anchors_a_cell, Kernel(1), norm=bias_only, init=init, rngs=rngs)
        self.deltas = ConvNorm(in_channels, anchors_a_cell * 4, Kernel(1), norm=bias_only, init=init, rngs=rngs)

    @jax.named_scope("rpn_head")
    def __call__(
        self, features: Sequence[Float[Array, "B _ _ C"]]
    ) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]]]:
        """Returns objectness logits and anchor deltas, level by level, in the anchors' order."""
        logits, deltas = [], []
        for x in features:
            for i in range(self.num_convs):
                x = jax.nn.relu(getattr(self, f"conv{i + 1}")(x))
            logits.append(at_least_float32(self.objectness(x).reshape(x.shape[0], -1)))
            deltas.append(at_least_float32(self.deltas(x).reshape(x.shape[0], -1, 4)))
        return logits, deltas

    def propose(self, context: Context, *, train: bool) -> tuple[Proposals, Losses]:
        config, names = self.config, self.config.features
        logits, deltas = call(self, [context.features[name] for name in names])
        logits = context.observe("RPN logits", dict(zip(names, logits, strict=True)))
        deltas = context.observe("RPN deltas", dict(zip(names, deltas, strict=True)))
        logits, deltas = [logits[name] for name in names], [deltas[name] for name in names]
        anchors = level_anchors(config, context.features, context.strides, context.padded_size)
        of_image = functools.partial(propose, config, anchors, train=train)
        proposals = context.observe("proposals", jax.vmap(of_image)(logits, deltas, context.image_sizes))

        def losses(truth: GroundTruth, keys: Keys) -> Terms:
            of_image = functools.partial(rpn_losses, config, anchors)
            joined = jnp.concatenate(logits, axis=1)
            priority = priorities(keys, _ANCHORS, (len(joined), joined.shape[1]))
            return jax.vmap(of_image)(joined, jnp.concatenate(deltas, axis=1), truth, priority)

        return proposals, losses


def level_anchors(
    config: RPNConfig,
    features: Mapping[str, Float[Array, "B _ _ C"]],
    strides: Mapping[str, int],
    padded_size: tuple[int, int],
) -> list[Float[Array, "_ 4"]]:
    """The anchors of each level, ordered by row, column, and anchor of the cell."""
    anchors = []
    for name, sizes in zip(config.features, config.sizes, strict=True):
        grid = (features[name].shape[1], features[name].shape[2])
        stride = (strides[name], strides[name])
        if config.anchor_stride == "grid":
            stride = (padded_size[0] // grid[0], padded_size[1] // grid[1])
        cell = anchor_ops.cell_anchors(sizes, config.ratios, rounded=config.rounded_anchors)
        anchors.append(anchor_ops.grid_anchors(grid, stride, cell))
    return anchors


def rpn_targets(
    config: RPNConfig, anchors: Float[Array, "N 4"], truth: GroundTruth, priority: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Bool[Array, " N"], Bool[Array, " N"]]:
    """Match each anchor of one image with its ground truth, and sample anchors as foreground and background.

    `priority` decides the draw: candidates with the highest values are taken.
    """
    matches = match_boxes(
        anchors,
        truth.boxes,
        truth.valid,
        background=config.background_iou,
        foreground=config.foreground_iou,
        low_quality=True,
    )
    drawn = sample(matches.label, priority, num=config.samples, foreground_fraction=config.foreground_fraction)
    # A mask over all anchors, not a gather: the loss then has a gradient without a scatter.
    sampled = jnp.zeros(anchors.shape[0], bool).at[drawn.indices].max(drawn.valid)
    return matches.gt_index, sampled, sampled & (matches.label == 1)


@jax.named_scope("rpn_losses")
def rpn_losses(
    config: RPNConfig,
    level_anchors: Sequence[Float[Array, "_ 4"]],
    objectness_logits: Float[Array, "N"],
    pred_anchor_deltas: Float[Array, "N 4"],
    truth: GroundTruth,
    priority: Float[Array, " N"],
) -> dict[str, Mean]:
    """Losses of one image: objectness of the sampled anchors, and boxes of the foreground among them.

    Also how many are foreground, by IoU and by level.
    """
    anchors = jnp.concatenate(level_anchors)
    gt_index, sampled, foreground = rpn_targets(config, anchors, truth, priority)
    objectness = masked_mean(binary_cross_entropy(objectness_logits, at_least_float32(foreground)), sampled)
    boxes = box_regression_loss(config, pred_anchor_deltas, anchors, truth.boxes[gt_index], foreground)
    count = objectness.count if config.normalizer == "sampled" else jnp.float32(config.samples)
    ends = np.cumsum([len(level) for level in level_anchors])
    levels = zip(config.features, jnp.split(foreground, ends[:-1]), strict=True)
    iou = box_ops.paired_iou(anchors, truth.boxes[gt_index])
    return {
        "loss/rpn_objectness": Mean(objectness.total, count),
        "loss/rpn_box": Mean(boxes, count),
        "rpn/foreground_anchors": counted(foreground),
        **{f"histogram/anchors_by_level/{name}": counted(of_level) for name, of_level in levels},
        **counted_by_iou("histogram/anchors_by_iou", iou, foreground),
    }


@jax.named_scope("proposals")
def propose(
    config: RPNConfig,
    anchors: Sequence[Float[Array, "_ 4"]],
    objectness_logits: Sequence[Float[Array, "_"]],
    pred_anchor_deltas: Sequence[Float[Array, "_ 4"]],
    image_size: Int[Array, "2"],
    *,
    train: bool,
) -> Proposals:
    """The best boxes of one image: the top of each level, after NMS within the level, then the top over all levels.

    Boxes that are empty after clipping, or not finite, are dropped. No gradient flows through proposals.
    """
    pre_nms = config.pre_nms_train if train else config.pre_nms_test
    post_nms = config.post_nms_train if train else config.post_nms_test
    levels = jax.lax.stop_gradient((anchors, objectness_logits, pred_anchor_deltas))
    candidates = [_candidates(config, image_size, *level, pre_nms) for level in zip(*levels, strict=True)]
    sizes = [len(level.logits) for level in candidates]
    boxes, logits, valid = jax.tree.map(lambda *levels: _stacked(levels, max(sizes)), *candidates)
    of_level = functools.partial(nms, iou_threshold=config.nms_iou, max_outputs=min(post_nms, max(sizes)))
    keep = jax.vmap(of_level)(boxes, logits, valid)
    boxes, logits = jax.vmap(lambda boxes, logits, rows: (boxes[rows], logits[rows]))(boxes, logits, keep.indices)
    order = jnp.where(keep.valid, logits, -jnp.inf).reshape(-1)
    order, best = top_k(order, min(post_nms, sum(min(post_nms, size) for size in sizes)))
    valid = keep.valid.reshape(-1)[best]
    return Proposals(jnp.where(valid[:, None], boxes.reshape(-1, 4)[best], 0.0), jnp.where(valid, order, 0.0), valid)


class _Candidates(NamedTuple):
    """Boxes of a level before NMS, best logit first."""

    boxes: Float[Array, "N 4"]
    logits: Float[Array, " N"]
    valid: Bool[Array, " N"]


def _candidates(
    config: RPNConfig,
    image_size: Int[Array, "2"],
    anchors: Float[Array, "_ 4"],
    logits: Float[Array, "_"],
    deltas: Float[Array, "_ 4"],
    most: int,
) -> _Candidates:
    logits, top = top_k(logits, min(most, len(logits)))
    boxes = box_ops.decode(deltas[top], anchors[top], config.box_weights)
    finite = jnp.isfinite(boxes).all(axis=-1) & jnp.isfinite(logits)
    boxes = box_ops.clip(jnp.where(finite[:, None], boxes, 0.0), image_size)
    return _Candidates(boxes, jnp.where(finite, logits, 0.0), finite & box_ops.nonempty(boxes, config.min_box_size))


def _stacked(levels: Sequence[Shaped[Array, "_ *rest"]], size: int) -> Shaped[Array, "L {size} *rest"]:
    """The levels as one array, the smaller ones filled up with zeros, so that one loop serves all."""
    return jnp.stack([jnp.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in levels])
