"""PointRend (Kirillov et al. 2020, https://arxiv.org/abs/1912.08193): masks that are made finer point by point.

A coarse head predicts small masks of all classes. A point head predicts a class's logit at single points, from the
features of the image there and the coarse logits of all classes there: in training at points where the coarse mask is
uncertain, and for detections on a grid, which is then doubled several times and looked at anew where it is uncertain.
Shape letters: `B` images, `R` RoIs, `N` RoIs of all images, `D` detection slots, `S` side of a coarse mask, `Q` side of
the pooled grid, `P` points, `M` side of a mask, `K` classes, `C` channels.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.models.heads.mask import (
    MaskBranch,
    MaskBranchConfig,
    MaskHeadConfig,
    mask_losses,
    masks_of_class,
    predictor_of_class,
)
from mask_rcnn_jax.models.layers import Conv, call, over_rois
from mask_rcnn_jax.models.layers.initialisers import msra_init, normal_init, xavier_init
from mask_rcnn_jax.models.losses import Mean, binary_cross_entropy
from mask_rcnn_jax.ops.conv import Window
from mask_rcnn_jax.ops.pooling import points as point_ops
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.ranges import Channels, Layers, Positive, Range, Share
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs

_COARSE_TARGETS = MaskHeadConfig(aligned_targets=True, soft_targets=False)


@dataclass(frozen=True)
class PointRendConfig(MaskBranchConfig):
    """Settings of the coarse head and of the point head; the defaults are Detectron2's."""

    on_predicted_boxes: ClassVar[bool] = True

    feature: str = "p2"  # of which both heads take values at points
    pooled_size: Annotated[int, Range(2, 1024, multiple_of=2)] = 14  # side of the grid of points of the coarse head
    coarse_channels: Channels = 256
    num_coarse_fcs: Layers = 2
    coarse_fc_channels: Channels = 1024
    coarse_size: Annotated[int, Range(1, 256)] = 7  # side of a coarse mask
    num_point_fcs: Layers = 3
    point_channels: Channels = 256
    train_points: Positive = 196  # a RoI
    oversampling: Annotated[float, Range(1, 100)] = 3.0  # candidates for each point of training
    importance: Share = 0.75  # of these points: are the most uncertain candidates
    subdivisions: Annotated[int, Range(0, 10)] = 5  # how often the side of a mask is doubled
    subdivision_points: Positive = 784  # of a mask that are looked at anew after each

    @property
    def grids(self) -> tuple[int, ...]:
        """Sides of the grids of a mask. All of the first is computed: points would suffice for the whole of it."""
        sides = [self.coarse_size * 2**number for number in range(self.subdivisions + 1)]
        whole = [side for side in sides[1:] if side**2 <= self.subdivision_points]
        return tuple(sides[len(whole) :])

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "PointRendHead":
        return PointRendHead(self, inputs.channels((self.feature,), "feature"), inputs.num_classes, rngs=rngs)

    def check(self, inputs: Inputs) -> None:
        inputs.channels((self.feature,), "feature")


class CoarseHead(nnx.Module):
    """A convolution that halves the sides, fully connected layers, and the logits of small masks."""

    recomputed = False

    def __init__(self, config: PointRendConfig, in_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        self.num_fcs, self.mask_shape = config.num_coarse_fcs, (num_classes, config.coarse_size, config.coarse_size)
        channels = config.coarse_channels
        # As in Detectron2, where features have more channels than the head.
        self.reduce_channels = _conv(1, in_channels, channels, rngs) if in_channels > channels else None
        self.reduce_sides = _conv(2, min(in_channels, channels), channels, rngs)
        features = channels * (config.pooled_size // 2) ** 2
        for i in range(config.num_coarse_fcs):
            fc = nnx.Linear(features, config.coarse_fc_channels, kernel_init=xavier_init, rngs=rngs)
            setattr(self, f"fc{i + 1}", fc)
            features = config.coarse_fc_channels
        outputs = num_classes * config.coarse_size**2
        self.prediction = nnx.Linear(features, outputs, kernel_init=normal_init(0.001), rngs=rngs)

    def __call__(self, pooled: Float[Array, "B R Q Q C"], valid: Bool[Array, "B R"]) -> Float[Array, "B R K S S"]:
        """Coarse logits of each RoI for every class; RoIs that are not `valid` have zeros or any finite logits."""
        return over_rois(self, self._logits, valid, pooled)

    def _logits(self, x: Float[Array, "N Q Q C"]) -> Float[Array, "N K S S"]:
        if self.reduce_channels is not None:
            x = jax.nn.relu(self.reduce_channels(x))
        x = jax.nn.relu(self.reduce_sides(x))
        x = x.reshape(x.shape[0], -1)
        for i in range(self.num_fcs):
            x = jax.nn.relu(getattr(self, f"fc{i + 1}")(x))
        return self.prediction(x).reshape(-1, *self.mask_shape)


def _conv(side: int, in_channels: int, out_channels: int, rngs: nnx.Rngs) -> Conv:
    shape = side, side, in_channels, out_channels
    return Conv(shape, Window(stride=side), 1, use_bias=True, init=msra_init, rngs=rngs)


class PointHead(nnx.Module):
    """Layers over single points, each of which is given the coarse logits of all classes beside its input.

    As in the mask head the predictor has K channels, and that of the class at hand is computed.
    """

    recomputed = False

    def __init__(self, config: PointRendConfig, in_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        self.num_fcs = config.num_point_fcs
        channels = in_channels
        for i in range(config.num_point_fcs):
            fc = nnx.Linear(channels + num_classes, config.point_channels, kernel_init=msra_init, rngs=rngs)
            setattr(self, f"fc{i + 1}", fc)
            channels = config.point_channels
        kernel = normal_init(0.001)(rngs.params(), (channels + num_classes, num_classes), jnp.float32)
        self.predictor_kernel, self.predictor_bias = nnx.Param(kernel), nnx.Param(jnp.zeros(num_classes))

    def __call__(
        self,
        fine: Float[Array, "B R P C"],
        coarse: Float[Array, "B R P K"],
        classes: Int[Array, "B R"],
        valid: Bool[Array, "B R"],
    ) -> Float[Array, "B R P"]:
        """Logits of each RoI at its points for its class, in float32 at least; `valid` as for the coarse head."""

        def logits(fine: Array, coarse: Array, classes: Array) -> Array:
            return self.logits(fine[:, :, 0], coarse, classes)

        return over_rois(self, logits, valid, fine[:, :, :, None], coarse, classes)

    def logits(
        self, fine: Float[Array, "N P C"], coarse: Float[Array, "N P K"], classes: Int[Array, " N"]
    ) -> Float[Array, "N P"]:
        x = fine
        for i in range(self.num_fcs):
            x = jax.nn.relu(getattr(self, f"fc{i + 1}")(jnp.concatenate([x, coarse], axis=-1)))
        x = jnp.concatenate([x, coarse], axis=-1)
        kernel, bias = self.predictor_kernel[...].astype(x.dtype), self.predictor_bias[...].astype(x.dtype)
        kernel, bias = predictor_of_class(kernel, bias, classes)
        return at_least_float32(jnp.einsum("npc,nc->np", x, kernel) + bias[:, None])


class PointRendHead(MaskBranch):
    """The coarse head and the point head."""

    def __init__(self, config: PointRendConfig, in_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        self.config = config
        self.coarse_head = CoarseHead(config, in_channels, num_classes, rngs=rngs)
        self.point_head = PointHead(config, in_channels, num_classes, rngs=rngs)

    @jax.named_scope("coarse_mask")
    def coarse(
        self, context: Context, boxes: Float[Array, "B R 4"], valid: Bool[Array, "B R"]
    ) -> Float[Array, "B R K S S"]:
        """Compute the coarse logits of every class inside boxes."""
        return call(self.coarse_head, self.pooled(context, boxes), valid)

    def pooled(self, context: Context, boxes: Float[Array, "B R 4"]) -> Float[Array, "B R Q Q C"]:
        """Sample the features at the centres of the cells of a grid over each box; this is not RoIAlign at borders."""
        side = self.config.pooled_size
        points = jnp.broadcast_to(point_ops.grid_points(side), (*boxes.shape[:2], side * side, 2))
        return self.fine(context, boxes, points).reshape(*boxes.shape[:2], side, side, -1)

    def fine(
        self, context: Context, boxes: Float[Array, "B R 4"], points: Float[Array, "B R P 2"]
    ) -> Float[Array, "B R P C"]:
        """Sample the features at points relative to boxes."""
        images = jnp.broadcast_to(jnp.arange(boxes.shape[0])[:, None], boxes.shape[:2])
        merged = (x.reshape(-1, *x.shape[2:]) for x in (boxes, images, points))
        return self._fine(context, *merged).reshape(*points.shape[:3], -1)

    def _fine(
        self,
        context: Context,
        boxes: Float[Array, "N 4"],
        images: Int[Array, " N"],
        points: Float[Array, "N P 2"],
    ) -> Float[Array, "N P C"]:
        at = point_ops.place_in_boxes(points, boxes) / context.strides[self.config.feature]
        features = context.features[self.config.feature]
        of_points = jnp.broadcast_to(images[:, None], points.shape[:2]).reshape(-1)
        flat = point_ops.sample_points(features, of_points, at.reshape(-1, 2))
        return flat.reshape(*points.shape[:2], -1)

    @jax.named_scope("mask_head")
    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        coarse = context.observe("coarse mask logits", self.coarse(context, rois.boxes, rois.foreground))
        batch, number = rois.classes.shape
        of_class = masks_of_class(coarse.reshape(-1, *coarse.shape[2:]), rois.classes.reshape(-1))
        of_class = of_class.reshape(batch, number, *coarse.shape[3:])
        points = train_points(self.config, keys, jax.lax.stop_gradient(of_class))
        with jax.named_scope("point_head"):
            coarse_at = jax.vmap(point_ops.sample_coarse)(coarse, points)
            fine = self.fine(context, rois.boxes, points)
            logits = call(self.point_head, fine, coarse_at, rois.classes, rois.foreground)
        logits = context.observe("mask logits", logits)
        of_image = functools.partial(mask_losses, _COARSE_TARGETS)
        terms = jax.vmap(of_image)(of_class, rois, truth)
        return terms | jax.vmap(point_losses)(logits, points, rois, truth)

    @jax.named_scope("mask_head")
    def answer(self, context: Context, found: PaddedDetections) -> Float[Array, "B D M M"]:
        """Return the probabilities of masks inside their boxes, zeros in padded rows."""
        coarse = self.coarse(context, found.boxes, found.valid)
        logits = self.subdivide(context, coarse, found.boxes, found.classes, found.valid)
        return jnp.where(found.valid[..., None, None], jax.nn.sigmoid(logits), 0.0)

    @jax.named_scope("subdivision")
    def subdivide(
        self,
        context: Context,
        coarse: Float[Array, "B R K S S"],
        boxes: Float[Array, "B R 4"],
        classes: Int[Array, "B R"],
        valid: Bool[Array, "B R"],
    ) -> Float[Array, "B R M M"]:
        """Compute mask logits on the finest grid; RoIs that are not `valid` have zeros or any finite logits."""

        def refine(coarse: Array, boxes: Array, classes: Array, images: Array) -> Array:
            logits_at = functools.partial(self._logits_at, context, coarse, boxes, classes, images)
            first, *finer = self.config.grids
            logits = logits_at(jnp.broadcast_to(point_ops.grid_points(first), (boxes.shape[0], first**2, 2)))
            logits = logits.reshape(-1, first, first)
            for side in finer:
                logits = point_ops.doubled(logits)
                cells = point_ops.uncertain_cells(logits, self.config.subdivision_points)
                logits = point_ops.with_cells(logits, cells, logits_at(point_ops.cell_points(cells, side)))
            return logits

        images = jnp.broadcast_to(jnp.arange(boxes.shape[0])[:, None], classes.shape)
        return over_rois(self, refine, valid, coarse, boxes, classes, images)

    def _logits_at(
        self,
        context: Context,
        coarse: Float[Array, "N K S S"],
        boxes: Float[Array, "N 4"],
        classes: Int[Array, " N"],
        images: Int[Array, " N"],
        points: Float[Array, "N P 2"],
    ) -> Float[Array, "N P"]:
        fine = self._fine(context, boxes, images, points)
        return self.point_head.logits(fine, point_ops.sample_coarse(coarse, points), classes)


@jax.named_scope("train_points")
def train_points(config: PointRendConfig, keys: Keys, coarse: Float[Array, "B R S S"]) -> Float[Array, "B R P 2"]:
    """Choose the points, relative to their RoIs, on which RoIs are trained: mostly where the coarse mask is uncertain.

    Candidates are drawn uniformly in each RoI, or without keys are the same ones, evenly spread, in all.
    """
    num = int(config.train_points * config.oversampling)

    def of_image(key: Key[Array, ""] | None, coarse: Float[Array, "R S S"]) -> Float[Array, "R P 2"]:
        shape = coarse.shape[0], num, 2
        drawn = (
            jnp.broadcast_to(point_ops.spread_points(num), shape)
            if key is None
            else jax.random.uniform(key, shape, coarse.dtype)
        )
        logits = point_ops.sample_coarse(coarse[:, None], drawn)[..., 0]
        num_uncertain = int(config.importance * config.train_points)
        return point_ops.important_points(drawn, logits, config.train_points, num_uncertain)

    return jax.vmap(of_image)(keys, coarse)


@jax.named_scope("point_losses")
def point_losses(
    logits: Float[Array, "R P"], points: Float[Array, "R P 2"], rois: SampledRoIs, truth: GroundTruth
) -> dict[str, Mean]:
    """Binary cross-entropy of one image's foreground at the points, to the coverage of the mask there."""
    in_image = point_ops.place_in_boxes(points, rois.boxes)
    labels = point_ops.mask_labels(truth.masks, truth.regions, in_image, rois.gt_index)
    counted = at_least_float32(jnp.broadcast_to(rois.foreground[:, None], logits.shape))
    losses = binary_cross_entropy(logits, labels)
    correct = (logits > 0) == (labels >= 0.5)
    return {
        "loss/mask_point": Mean(jnp.sum(losses * counted), jnp.sum(counted)),
        "mask/point_accuracy": Mean(jnp.sum(correct * counted), jnp.sum(counted)),
    }
