"""Keypoint branch (He et al. 2017, section 5): the head and its loss; `ops.decode_keypoints` reads its heatmaps.

Shape letters: `B` images, `R` RoIs, `P` side of the pooled grid, `S` = 4 P side of a heatmap, `G` ground-truth slots,
`D` detection slots, `J` keypoints, `C` channels, `N` RoIs of all images.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.models.heads.base import Head, HeadConfig
from mask_rcnn_jax.models.layers import ConvNorm, Kernel, call
from mask_rcnn_jax.models.layers.initialisers import normal_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.losses import Mean, masked_mean, softmax_cross_entropy
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig
from mask_rcnn_jax.ops.keypoints import decode_keypoints, keypoint_targets
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.ranges import Channels, Layers
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs


@dataclass(frozen=True)
class KeypointHeadConfig(HeadConfig):
    name: ClassVar[str] = "keypoint_head"
    needs: ClassVar[Literal["keypoints"]] = "keypoints"

    pooler: RoIPoolerConfig = PoolerConfig(output_size=14)
    num_keypoints: Channels = 17
    num_convs: Layers = 8
    channels: Channels = 512
    decode: Literal["detectron2", "torchvision"] = "detectron2"  # the score is relative to the heatmap, or the logit

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "KeypointHead":
        return KeypointHead(self, inputs.of_rois(self.pooler)[0], rngs=rngs)


class KeypointHead(Head):
    """Convolutions, a deconvolution to J channels, and twofold bilinear upsampling."""

    def __init__(self, config: KeypointHeadConfig, in_channels: int, *, rngs: nnx.Rngs):
        self.config = config
        self.num_convs = config.num_convs
        channels = in_channels
        for i in range(config.num_convs):
            conv = ConvNorm(channels, config.channels, Kernel(3), norm=NormConfig(kind="none"), rngs=rngs)
            setattr(self, f"conv{i + 1}", conv)
            channels = config.channels
        self.deconv = Deconv4x4(channels, config.num_keypoints, rngs=rngs)

    @jax.named_scope("keypoint_head")
    def __call__(self, roi_features: Float[Array, "B R P P C"]) -> Float[Array, "B R J 4*P 4*P"]:
        """Logits over the cells of each RoI, one heatmap a keypoint, in float32 at least."""
        batch, rois = roi_features.shape[:2]
        x = roi_features.reshape(batch * rois, *roi_features.shape[2:])
        for i in range(self.num_convs):
            x = jax.nn.relu(getattr(self, f"conv{i + 1}")(x))
        x = at_least_float32(self.deconv(x))
        num, height, width, keypoints = x.shape
        x = jax.image.resize(x, (num, 2 * height, 2 * width, keypoints), "linear")
        return jnp.moveaxis(x, -1, 1).reshape(batch, rois, keypoints, 2 * height, 2 * width)

    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        heatmaps = call(self, context.pool(self.config.pooler, rois.boxes))
        heatmaps = context.observe("keypoint heatmaps", heatmaps)
        of_image = functools.partial(keypoint_losses, self.config)
        return jax.vmap(of_image)(heatmaps, rois, truth)

    def answer(self, context: Context, found: PaddedDetections) -> Float[Array, "B D J S S"]:
        """Return the heatmaps of keypoints inside their boxes, in logits."""
        return self(context.pool(self.config.pooler, found.boxes))

    def add(self, found: PaddedDetections, answer: Float[Array, "B D J S S"]) -> PaddedDetections:
        keypoints = jax.vmap(functools.partial(decode_keypoints, convention=self.config.decode))(answer, found.boxes)
        return replace(found, keypoints=jnp.where(found.valid[..., None, None], keypoints, 0.0))

    def unmirrored(self, answer: Float[Array, "B D J S S"], keypoints: tuple[int, ...]) -> Float[Array, "B D J S S"]:
        return answer[:, :, jnp.array(keypoints), :, ::-1]


class Deconv4x4(nnx.Module):
    """A 4x4 transposed convolution with stride 2 and padding 1, which doubles the sides.

    Input cell (h, w) adds its product with `kernel[y, x]` to output cell (2 h + y - 1, 2 w + x - 1). So `kernel`
    [y, x, in, out] is the weight [in, out, y, x] of `torch.nn.ConvTranspose2d` under the permutation (2, 3, 0, 1), with
    nothing flipped; `jax.lax.conv_transpose` takes the same array with `transpose_kernel=False` and both axes flipped.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        # Kaiming normal, mode fan_out, as the references call it: torch takes the channels in for those out here.
        init = normal_init(math.sqrt(2 / (16 * in_channels)))
        self.kernel = nnx.Param(init(rngs.params(), (4, 4, in_channels, out_channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N 2*H 2*W O"]:
        # One product, then sums where windows overlap: XLA's transposed convolution is six times as slow on CPU.
        x = jnp.einsum("nhwi,yxio->nhywxo", x, self.kernel[...].astype(x.dtype))
        x = _join_windows(_join_windows(x, 1), 2)
        return x + self.bias[...].astype(x.dtype)


def _join_windows(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Sums cells (axis `axis`) and their windows of 4 (the axis after it), 2 apart, to one axis of twice the cells."""
    cells = x.shape[axis]
    x = jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])

    def window(offset: int, first: int) -> Float[Array, "..."]:
        """One element of the windows of the cells from `first` on, where the first cell is 1."""
        of_cells = jax.lax.slice_in_dim(x, first, first + cells, axis=axis)
        return jax.lax.index_in_dim(of_cells, offset, axis + 1, keepdims=False)

    even, odd = window(1, 1) + window(3, 0), window(2, 1) + window(0, 2)
    joined = jnp.stack([even, odd], axis=axis + 1)
    return joined.reshape(*joined.shape[:axis], 2 * cells, *joined.shape[axis + 2 :])


@jax.named_scope("keypoint_losses")
def keypoint_losses(
    config: KeypointHeadConfig, keypoint_logits: Float[Array, "R J S S"], rois: SampledRoIs, truth: GroundTruth
) -> dict[str, Mean]:
    """Cross-entropy over the cells of one image's foreground RoIs, for each annotated keypoint inside its RoI.

    Also how often the highest cell is the right one. Raises `UserError` where the ground truth holds no keypoints, or
    another number of them than the head predicts.
    """
    if truth.keypoints is None or truth.keypoints.shape[-2] != config.num_keypoints:
        held = 0 if truth.keypoints is None else truth.keypoints.shape[-2]
        raise UserError(
            f"keypoint_head.num_keypoints is {config.num_keypoints} but the ground truth holds {held} keypoints an "
            "instance; set it to the dataset's number, or keypoint_head to None."
        )
    num, keypoints, side, _ = keypoint_logits.shape
    cells, valid = keypoint_targets(truth.keypoints, rois.boxes, rois.gt_index, side)
    logits = at_least_float32(keypoint_logits).reshape(num, keypoints, side * side)
    counted = valid & rois.foreground[:, None]
    return {
        "loss/keypoint": masked_mean(softmax_cross_entropy(logits, cells), counted),
        "keypoint/accuracy": masked_mean(jnp.argmax(logits, axis=-1) == cells, counted),
    }
