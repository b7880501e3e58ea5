"""Mask branch (He et al. 2017, https://arxiv.org/abs/1703.06870): the head, its loss, and the masks of detections.

Shape letters: `B` images, `R` RoIs, `D` detection slots, `P` side of the pooled grid, `M` = 2 P side of a mask,
`K` classes, `K1` outputs of the predictor, `C` channels.
"""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.models.heads.base import Head, HeadConfig
from mask_rcnn_jax.models.layers import ConvNorm, Deconv2x2, Kernel, call, over_rois
from mask_rcnn_jax.models.layers.initialisers import msra_init, normal_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.losses import Mean, binary_cross_entropy
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig
from mask_rcnn_jax.ops.masks import PasteConvention, mask_targets
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid
from mask_rcnn_jax.ops.precision import EXACT, at_least_float32
from mask_rcnn_jax.ranges import AddedLater, Channels, Layers
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs

MaskLoss = Literal["sigmoid", "softmax"]


@dataclass(frozen=True)
class MaskBranchConfig(HeadConfig):
    """Settings of a head that finds masks. Whatever derives from this class may stand as a model's `mask_head`."""

    name: ClassVar[str] = "mask_head"
    needs: ClassVar[Literal["masks"]] = "masks"

    paste: PasteConvention = field(default="detectron2", kw_only=True)


@dataclass(frozen=True)
class MaskHeadConfig(MaskBranchConfig):
    pooler: RoIPoolerConfig = PoolerConfig(output_size=14)
    num_convs: Layers = 4
    channels: Channels = 256
    norm: NormConfig = NormConfig(kind="none")
    aligned_targets: bool = True  # False, with soft targets: torchvision
    soft_targets: bool = False
    class_agnostic: Annotated[bool, AddedLater()] = False  # one mask a RoI, not one a class
    mask_loss: Annotated[MaskLoss, AddedLater()] = "sigmoid"  # each class by itself, or all and background in a cell

    def __post_init__(self) -> None:
        if self.num_convs:
            self.norm.check_channels("channels", self.channels)
        if self.class_agnostic and self.mask_loss == "softmax":
            raise ValueError("a softmax is over classes: set class_agnostic=false, or mask_loss=sigmoid")

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "MaskHead":
        head = SoftmaxMaskHead if self.mask_loss == "softmax" else MaskHead
        return head(self, inputs.of_rois(self.pooler)[0], inputs.num_classes, rngs=rngs)


@runtime_checkable
class PooledMaskSettings(Protocol):
    """The settings of whatever makes masks of pooled features."""

    @property
    def pooler(self) -> RoIPoolerConfig:
        """Return how RoIs are pooled."""
        ...

    @property
    def aligned_targets(self) -> bool:
        """Tell whether masks are sampled half-pixel correct to make targets."""
        ...

    @property
    def soft_targets(self) -> bool:
        """Tell whether targets are shares of cells, not thresholded at a half."""
        ...


class MaskBranch(Head):
    """A head whose answers are the probabilities of masks inside their boxes."""

    def add(self, found: PaddedDetections, answer: Float[Array, "B D M M"]) -> PaddedDetections:
        return replace(found, masks=answer)

    def unmirrored(self, answer: Float[Array, "B D M M"], keypoints: tuple[int, ...]) -> Float[Array, "B D M M"]:
        return answer[..., ::-1]


class PooledMaskBranch(MaskBranch):
    """A branch on pooled features: called with them, classes and which RoIs are valid, it returns logits of masks."""

    config: PooledMaskSettings

    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        logits = call(self, context.pool(self.config.pooler, rois.boxes), rois.classes, rois.foreground)
        logits = context.observe("mask logits", logits)
        of_image = functools.partial(self.losses_of_image, self.config)
        return jax.vmap(of_image)(logits, rois, truth)

    def answer(self, context: Context, found: PaddedDetections) -> Float[Array, "B D M M"]:
        """Return the probabilities of masks inside their boxes, zeros in padded rows."""
        masks = self.probabilities(self(context.pool(self.config.pooler, found.boxes), found.classes, found.valid))
        return jnp.where(found.valid[..., None, None], masks, 0.0)

    @staticmethod
    def losses_of_image(config: PooledMaskSettings, logits: Any, rois: SampledRoIs, truth: GroundTruth) -> Terms:
        """Compute the losses of one image's foreground masks."""
        return mask_losses(config, logits, rois, truth)

    @staticmethod
    def probabilities(logits: Any) -> Float[Array, "B D M M"]:
        """Compute the probabilities that logits stand for."""
        return jax.nn.sigmoid(logits)


def predictor_of_class(
    kernel: Float[Array, "C K"], bias: Float[Array, " K"], classes: Int[Array, " R"]
) -> tuple[Float[Array, "R C"], Float[Array, " R"]]:
    """Return the weights and the bias of each RoI's class; zeros for a class that there is not, such as background."""
    of_class = jax.nn.one_hot(classes, kernel.shape[1], dtype=kernel.dtype)
    return jnp.matmul(of_class, kernel.T, precision=EXACT), jnp.matmul(of_class, bias, precision=EXACT)


def masks_of_class(masks: Float[Array, "R K M M"], classes: Int[Array, " R"]) -> Float[Array, "R M M"]:
    """Return the mask of one class a RoI, zeros for background: a product, so that its gradient scatters nothing."""
    of_class = jax.nn.one_hot(classes, masks.shape[1], dtype=masks.dtype)
    return at_least_float32(jnp.einsum("rk,rkyx->ryx", of_class, masks, precision=EXACT))


class MaskHead(PooledMaskBranch):
    """Convolutions and a deconvolution, then the mask of one class a RoI.

    The predictor has K channels; only the channel of the class at hand is computed, as a product with its weights. A
    class-agnostic one has a channel for all.
    """

    def __init__(self, config: MaskHeadConfig, in_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        self.config = config
        self.num_convs, self.class_agnostic = config.num_convs, config.class_agnostic
        channels = in_channels
        for i in range(config.num_convs):
            conv = ConvNorm(channels, config.channels, Kernel(3), norm=config.norm, init=msra_init, rngs=rngs)
            setattr(self, f"conv{i + 1}", conv)
            channels = config.channels
        self.deconv = Deconv2x2(channels, config.channels, rngs=rngs)
        outputs = 1 if config.class_agnostic else num_classes + (config.mask_loss == "softmax")
        kernel = normal_init(0.001)(rngs.params(), (config.channels, outputs), jnp.float32)
        self.predictor_kernel, self.predictor_bias = nnx.Param(kernel), nnx.Param(jnp.zeros(outputs))

    @jax.named_scope("mask_head")
    def __call__(
        self, roi_features: Float[Array, "B R P P C"], classes: Int[Array, "B R"], valid: Bool[Array, "B R"]
    ) -> Float[Array, "B R M M"]:
        """Mask logits of each RoI for its class in 0..K-1; another class, such as background, gives zeros, unless the
        head is class-agnostic, which goes by no class.

        RoIs that are not `valid` leave a batch norm's statistics alone, and have zeros or any finite logits.
        """
        return over_rois(self, self._logits, valid, roi_features, classes, valid)

    def _logits(
        self, x: Float[Array, "R P P C"], classes: Int[Array, " R"], valid: Bool[Array, " R"]
    ) -> Float[Array, "R M M"]:
        x = self._upsampled(x, valid)
        kernel, bias = self.predictor_kernel[...].astype(x.dtype), self.predictor_bias[...].astype(x.dtype)
        classes = jnp.zeros_like(classes) if self.class_agnostic else classes
        kernel, bias = predictor_of_class(kernel, bias, classes)
        logits = jnp.einsum("rhwc,rc->rhw", x, kernel) + bias[:, None, None]
        return at_least_float32(logits)

    def _upsampled(self, x: Float[Array, "R P P C"], valid: Bool[Array, " R"]) -> Float[Array, "R M M _"]:
        """Compute what the predictor is given."""
        for i in range(self.num_convs):
            x = jax.nn.relu(getattr(self, f"conv{i + 1}")(x, valid))
        return jax.nn.relu(self.deconv(x))


class SoftmaxMaskHead(MaskHead):
    """The same layers with classes and background in competition in each cell, as FCN has it (Mask R-CNN, table 2b).

    The predictor has K + 1 channels, background last, and all are computed. They are given as two, the logarithms of
    the probabilities of the class at hand and of background.
    """

    @jax.named_scope("mask_head")
    def __call__(
        self, roi_features: Float[Array, "B R P P C"], classes: Int[Array, "B R"], valid: Bool[Array, "B R"]
    ) -> Float[Array, "B R M M 2"]:
        """Logarithms of the probabilities of each RoI's class in 0..K-1, or background, K, and of background.

        RoIs that are not `valid` as in `MaskHead`.
        """
        return over_rois(self, self._log_probabilities, valid, roi_features, classes, valid)

    def _log_probabilities(
        self, x: Float[Array, "R P P C"], classes: Int[Array, " R"], valid: Bool[Array, " R"]
    ) -> Float[Array, "R M M 2"]:
        x = self._upsampled(x, valid)
        kernel, bias = self.predictor_kernel[...].astype(x.dtype), self.predictor_bias[...].astype(x.dtype)
        of_all: Float[Array, "R M M K1"] = jax.nn.log_softmax(at_least_float32(jnp.matmul(x, kernel) + bias))
        of_class = jax.nn.one_hot(classes, of_all.shape[-1], dtype=of_all.dtype)
        return jnp.stack([jnp.einsum("rhwk,rk->rhw", of_all, of_class, precision=EXACT), of_all[..., -1]], axis=-1)

    @staticmethod
    def losses_of_image(config: PooledMaskSettings, logits: Any, rois: SampledRoIs, truth: GroundTruth) -> Terms:
        return softmax_mask_losses(config, logits, rois, truth)

    @staticmethod
    def probabilities(logits: Any) -> Float[Array, "B D M M"]:
        return jnp.exp(logits[..., 0])


@jax.named_scope("mask_losses")
def mask_losses(
    config: PooledMaskSettings, mask_logits: Float[Array, "R M M"], rois: SampledRoIs, truth: GroundTruth
) -> dict[str, Mean]:
    """Binary cross-entropy of one image's foreground masks, on the channel of the ground truth's class or of all."""
    targets = _targets(config, mask_logits.shape[1], rois, truth)
    losses = binary_cross_entropy(mask_logits, targets)
    return _terms(losses, (mask_logits > 0) == (targets >= 0.5), rois)


@jax.named_scope("mask_losses")
def softmax_mask_losses(
    config: PooledMaskSettings, log_probabilities: Float[Array, "R M M 2"], rois: SampledRoIs, truth: GroundTruth
) -> dict[str, Mean]:
    """Cross-entropy of one image's foreground over classes and background: a cell is of the ground truth's class or of
    none, or of both by their shares where targets are soft.
    """
    of_class, of_none = log_probabilities[..., 0], log_probabilities[..., 1]
    targets = _targets(config, of_class.shape[1], rois, truth)
    losses = -(targets * of_class + (1 - targets) * of_none)
    return _terms(losses, (of_class > math.log(0.5)) == (targets >= 0.5), rois)


def _targets(config: PooledMaskSettings, side: int, rois: SampledRoIs, truth: GroundTruth) -> Float[Array, "R M M"]:
    grid = RoIGrid(side, aligned=config.aligned_targets)
    targets = mask_targets(truth.masks, truth.regions, rois.boxes, rois.gt_index, grid)
    return targets if config.soft_targets else at_least_float32(targets >= 0.5)


def _terms(losses: Float[Array, "R M M"], correct: Bool[Array, "R M M"], rois: SampledRoIs) -> dict[str, Mean]:
    counted = at_least_float32(jnp.broadcast_to(rois.foreground[:, None, None], losses.shape))
    return {
        "loss/mask": Mean(jnp.sum(losses * counted), jnp.sum(counted)),
        "mask/accuracy": Mean(jnp.sum(correct * counted), jnp.sum(counted)),
    }
