"""Mask branch (He et al. 2017, https://arxiv.org/abs/1703.06870): the head, its loss, and the masks of detections.

Shape letters: `B` images, `R` RoIs, `D` detection slots, `P` side of the pooled grid, `M` = 2 P side of a mask,
`K` classes, `C` channels.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

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

    def __post_init__(self) -> None:
        if self.num_convs:
            self.norm.check_channels("channels", self.channels)

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "MaskHead":
        return MaskHead(self, inputs.of_rois(self.pooler)[0], inputs.num_classes, rngs=rngs)


class MaskBranch(Head):
    """A head whose answers are the probabilities of masks inside their boxes."""

    def add(self, found: PaddedDetections, answer: Float[Array, "B D M M"]) -> PaddedDetections:
        return replace(found, masks=answer)

    def unmirrored(self, answer: Float[Array, "B D M M"], keypoints: tuple[int, ...]) -> Float[Array, "B D M M"]:
        return answer[..., ::-1]


def predictor_of_class(
    kernel: Float[Array, "C K"], bias: Float[Array, " K"], classes: Int[Array, " R"]
) -> tuple[Float[Array, "R C"], Float[Array, " R"]]:
    """Return the weights and the bias of each RoI's class; zeros for a class that there is not, such as background."""
    of_class = jax.nn.one_hot(classes, kernel.shape[1], dtype=kernel.dtype)
    return jnp.matmul(of_class, kernel.T, precision=EXACT), jnp.matmul(of_class, bias, precision=EXACT)


class MaskHead(MaskBranch):
    """Convolutions and a deconvolution, then the mask of one class a RoI.

    The predictor has K channels; only the channel of the class at hand is computed, as a product with its weights. A
    class-agnostic one has a channel for all.
    """

    def __init__(self, config: MaskHeadConfig, in_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        self.config = config
        self.num_convs = config.num_convs
        channels = in_channels
        for i in range(config.num_convs):
            conv = ConvNorm(channels, config.channels, Kernel(3), norm=config.norm, init=msra_init, rngs=rngs)
            setattr(self, f"conv{i + 1}", conv)
            channels = config.channels
        self.deconv = Deconv2x2(channels, config.channels, rngs=rngs)
        outputs = 1 if config.class_agnostic else num_classes
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
        for i in range(self.num_convs):
            x = jax.nn.relu(getattr(self, f"conv{i + 1}")(x, valid))
        x = jax.nn.relu(self.deconv(x))
        kernel, bias = self.predictor_kernel[...].astype(x.dtype), self.predictor_bias[...].astype(x.dtype)
        classes = jnp.zeros_like(classes) if self.config.class_agnostic else classes
        kernel, bias = predictor_of_class(kernel, bias, classes)
        logits = jnp.einsum("rhwc,rc->rhw", x, kernel) + bias[:, None, None]
        return at_least_float32(logits)

    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        logits = call(self, context.pool(self.config.pooler, rois.boxes), rois.classes, rois.foreground)
        logits = context.observe("mask logits", logits)
        of_image = functools.partial(mask_losses, self.config)
        return jax.vmap(of_image)(logits, rois, truth)

    def answer(self, context: Context, found: PaddedDetections) -> Float[Array, "B D M M"]:
        """Return the probabilities of masks inside their boxes, zeros in padded rows."""
        masks = jax.nn.sigmoid(self(context.pool(self.config.pooler, found.boxes), found.classes, found.valid))
        return jnp.where(found.valid[..., None, None], masks, 0.0)


@jax.named_scope("mask_losses")
def mask_losses(
    config: MaskHeadConfig, mask_logits: Float[Array, "R M M"], rois: SampledRoIs, truth: GroundTruth
) -> dict[str, Mean]:
    """Binary cross-entropy of one image's foreground masks, on the channel of the ground truth's class or of all."""
    grid = RoIGrid(mask_logits.shape[-1], aligned=config.aligned_targets)
    targets = mask_targets(truth.masks, truth.regions, rois.boxes, rois.gt_index, grid)
    if not config.soft_targets:
        targets = at_least_float32(targets >= 0.5)
    counted = at_least_float32(jnp.broadcast_to(rois.foreground[:, None, None], mask_logits.shape))
    losses = binary_cross_entropy(mask_logits, targets)
    correct = (mask_logits > 0) == (targets >= 0.5)
    return {
        "loss/mask": Mean(jnp.sum(losses * counted), jnp.sum(counted)),
        "mask/accuracy": Mean(jnp.sum(correct * counted), jnp.sum(counted)),
    }
