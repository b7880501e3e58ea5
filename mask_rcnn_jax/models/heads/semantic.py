"""The semantic head of Panoptic FPN (Kirillov et al. 2019, https://arxiv.org/abs/1901.02446).

Each level of the pyramid is brought to the stride of the finest by convolutions that are doubled in size between, the
levels are summed, and a 1x1 convolution says what kind of stuff a cell shows: kind 0 stands for all things, which the
other heads find. Shape letters: `B` images, `H W` padded height and width, `h w` sides of the map, `S` kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mask_rcnn_jax.models.backbones.base import Feature
from mask_rcnn_jax.models.context import Context, Features, Inputs, Keys, Terms
from mask_rcnn_jax.models.heads.base import Head, HeadConfig
from mask_rcnn_jax.models.layers import Conv, ConvNorm, Kernel, call
from mask_rcnn_jax.models.layers.initialisers import msra_init
from mask_rcnn_jax.models.layers.norms import NormConfig
from mask_rcnn_jax.models.losses import Mean, softmax_cross_entropy
from mask_rcnn_jax.ops.pooling.enlarging import enlarge
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.ranges import AtLeastZero, Channels, Items, NotNegative, Range, Share
from mask_rcnn_jax.structures import IGNORED, GroundTruth, PaddedDetections, SampledRoIs


@dataclass(frozen=True)
class PanopticConfig:
    """Settings by which instances and stuff become one map of segments; the defaults are Detectron2's."""

    min_score: Share = 0.5  # of instances that are taken
    max_overlap: Share = 0.5  # share of an instance that better ones may hide before it is left out
    min_stuff_area: NotNegative = 4096  # pixels of the original image that a kind of stuff must cover


@dataclass(frozen=True)
class SemanticHeadConfig(HeadConfig):
    """Settings of the head on the whole image; the defaults are Detectron2's for COCO.

    Group norm is taken over the image with its padding, as Detectron2's is: an image on a larger canvas gives slightly
    other logits.
    """

    name: ClassVar[str] = "semantic_head"
    needs: ClassVar[Literal["semantic"]] = "semantic"

    features: Annotated[tuple[str, ...], Items(1)] = ("p2", "p3", "p4", "p5")
    num_kinds: Annotated[int, Range(2, IGNORED)] = 54  # 0 for all things, then those of stuff
    channels: Channels = 128
    norm: NormConfig = NormConfig(kind="group_norm")
    loss_weight: AtLeastZero = 0.5
    combine: PanopticConfig = PanopticConfig()

    def __post_init__(self) -> None:
        self.norm.check_channels("channels", self.channels)

    def check(self, inputs: Inputs) -> None:
        if unknown := [name for name in self.features if name not in inputs.features]:
            raise ValueError(f"features has {', '.join(unknown)}, but the backbone makes {', '.join(inputs.features)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features {', '.join(self.features)} names one twice; a level is summed once")

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "SemanticHead":
        return SemanticHead(self, {name: inputs.features[name] for name in self.features}, rngs=rngs)


class SemanticHead(Head):
    """Convolutions of each level, and the predictor of their sum."""

    def __init__(self, config: SemanticHeadConfig, features: Mapping[str, Feature], *, rngs: nnx.Rngs):
        self.config = config
        self.stride = min(feature.stride for feature in features.values())
        self.doublings = tuple((name, (of.stride // self.stride).bit_length() - 1) for name, of in features.items())
        for name, doublings in self.doublings:
            channels = features[name].channels
            for number in range(1, max(doublings, 1) + 1):
                conv = ConvNorm(channels, config.channels, Kernel(3), norm=config.norm, init=msra_init, rngs=rngs)
                setattr(self, f"{name}_conv{number}", conv)
                channels = config.channels
        shape = (1, 1, config.channels, config.num_kinds)
        self.predictor = Conv(shape, Kernel(1).window, 1, use_bias=True, init=msra_init, rngs=rngs)

    @jax.named_scope("semantic_head")
    def __call__(self, features: Features) -> Float[Array, "B h w S"]:
        """Compute the logits, in float32 at least, on the grid of the finest feature."""
        height, width = (min(features[name].shape[axis] for name, n in self.doublings if n == 0) for axis in (1, 2))
        # The last cells of a coarse level may reach beyond the padded image, whose sides need not be multiples of them.
        levels = [self._level(name, n, features[name])[:, :height, :width] for name, n in self.doublings]
        return at_least_float32(self.predictor(sum(levels[1:], levels[0])))

    def _level(self, name: str, doublings: int, x: Float[Array, "B _ _ _"]) -> Float[Array, "B h w _"]:
        for number in range(1, max(doublings, 1) + 1):
            x = jax.nn.relu(getattr(self, f"{name}_conv{number}")(x))
            x = enlarge(x, 2) if doublings else x
        return x

    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        if truth.semantic is None:
            raise ValueError("the semantic head learns from GroundTruth.semantic, which is None")
        logits = context.observe("semantic logits", call(self, context.features))
        return semantic_losses(logits, truth.semantic, self.stride, self.config.loss_weight)

    def answer(self, context: Context, found: PaddedDetections) -> Float[Array, "B h w S"]:
        """Return the logits; `inference` makes kinds of them at the size of the original image."""
        return self(context.features)

    def add(self, found: PaddedDetections, answer: Float[Array, "B h w S"]) -> PaddedDetections:
        return replace(found, stuff=answer)


@jax.named_scope("semantic_losses")
def semantic_losses(
    logits: Float[Array, "B h w S"], labels: UInt8[Array, "B H W"], stride: int, weight: float
) -> dict[str, Mean]:
    """Compute the cross-entropy of the logits, interpolated to the labels' pixels, and the share of correct pixels.

    Pixels that are `IGNORED`, padding among them, do not count. Images are taken one after the other, and logits at
    full size are not kept for the gradient: COCO's are a quarter of a gigabyte an image.
    """

    @jax.checkpoint
    def of_image(image: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        logits, labels = image
        wide, counted = enlarge(logits[None], stride)[0], labels != IGNORED
        losses = softmax_cross_entropy(wide, labels.astype(jnp.int32))  # 0 where no kind is meant
        correct = counted & (jnp.argmax(wide, axis=-1) == labels)
        return jnp.sum(losses), jnp.sum(at_least_float32(counted)), jnp.sum(at_least_float32(correct))

    total, count, correct = jax.lax.map(of_image, (logits, labels))
    return {"loss/semantic": Mean(weight * total, count), "semantic/accuracy": Mean(correct, count)}
