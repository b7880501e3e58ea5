"""A mask branch of fully connected layers, which Mask R-CNN compares with its convolutions (He et al. 2017, table 2e).

Shape letters: `B` images, `R` RoIs, `P` side of the pooled grid, `M` side of a mask, `K` classes, `C` channels.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.models.context import Inputs
from mask_rcnn_jax.models.heads.mask import MaskBranchConfig, PooledMaskBranch, masks_of_class
from mask_rcnn_jax.models.layers import over_rois
from mask_rcnn_jax.models.layers.initialisers import normal_init, xavier_init
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig
from mask_rcnn_jax.ranges import Channels, Layers, Range


@dataclass(frozen=True)
class MLPMaskHeadConfig(MaskBranchConfig):
    """Settings of the branch; the defaults are the paper's 1024-1024-K x 28 x 28."""

    pooler: RoIPoolerConfig = PoolerConfig(output_size=14)
    num_fcs: Layers = 2  # before the predictor
    fc_channels: Channels = 1024
    mask_size: Annotated[int, Range(1, 256)] = 28
    aligned_targets: bool = True  # False, with soft targets: torchvision
    soft_targets: bool = False
    class_agnostic: bool = False  # one mask a RoI, not one a class

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "MLPMaskHead":
        return MLPMaskHead(self, *inputs.of_rois(self.pooler), inputs.num_classes, rngs=rngs)


class MLPMaskHead(PooledMaskBranch):
    """Fully connected layers, the last of which makes the masks of all classes at once."""

    def __init__(self, config: MLPMaskHeadConfig, in_channels: int, side: int, num_classes: int, *, rngs: nnx.Rngs):
        self.config, self.num_fcs, self.class_agnostic = config, config.num_fcs, config.class_agnostic
        self.mask_shape = (1 if config.class_agnostic else num_classes, config.mask_size, config.mask_size)
        features = in_channels * side**2
        for i in range(config.num_fcs):
            setattr(self, f"fc{i + 1}", nnx.Linear(features, config.fc_channels, kernel_init=xavier_init, rngs=rngs))
            features = config.fc_channels
        outputs = self.mask_shape[0] * config.mask_size**2
        self.prediction = nnx.Linear(features, outputs, kernel_init=normal_init(0.001), rngs=rngs)

    @jax.named_scope("mask_head")
    def __call__(
        self, roi_features: Float[Array, "B R P P C"], classes: Int[Array, "B R"], valid: Bool[Array, "B R"]
    ) -> Float[Array, "B R M M"]:
        """Mask logits of each RoI for its class in 0..K-1; another class, such as background, gives zeros, unless the
        head is class-agnostic. RoIs that are not `valid` have zeros or any finite logits.
        """
        return over_rois(self, self._logits, valid, roi_features, classes)

    def _logits(self, x: Float[Array, "R P P C"], classes: Int[Array, " R"]) -> Float[Array, "R M M"]:
        x = x.reshape(x.shape[0], -1)
        for i in range(self.num_fcs):
            x = jax.nn.relu(getattr(self, f"fc{i + 1}")(x))
        masks = self.prediction(x).reshape(-1, *self.mask_shape)
        return masks_of_class(masks, jnp.zeros_like(classes) if self.class_agnostic else classes)
