"""RoI pooling from the level of the pyramid that fits a RoI's size (FPN, equation 1).

Shape letters: `B` images, `R` RoIs, `P` side of the pooled grid, `C` channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops.roi_align import assign_levels, multilevel_roi_align
from mask_rcnn_jax.ranges import AboveZero, Items, Range


@dataclass(frozen=True)
class PoolerConfig:
    output_size: Annotated[int, Range(1, 1024)] = 7
    sampling_ratio: Annotated[int, Range(0, 1024)] = 0  # samples a bin and axis; 0 is adaptive: ceil(RoI side / bins)
    aligned: bool = True  # half-pixel correct; False is torchvision's (and the first Detectron's)
    reduction: Literal["average", "max"] = "average"
    features: Annotated[tuple[str, ...], Items(1)] = ("p2", "p3", "p4", "p5")
    canonical_size: AboveZero = 224.0  # a RoI of this side belongs to `canonical_level`
    canonical_level: Annotated[int, Range(0, 30)] = 4
    level_convention: Literal["detectron2", "torchvision"] = "detectron2"  # where the epsilon stands


@jax.named_scope("roi_align")
def pool(
    config: PoolerConfig,
    features: Mapping[str, Float[Array, "B _ _ C"]],
    strides: Mapping[str, int],
    rois: Float[Array, "B R 4"],
) -> Float[Array, "B R P P C"]:
    """RoIAligns each RoI (pixels of the padded image) from its level; padded RoIs give finite features."""
    levels = [features[name] for name in config.features]
    scales = tuple(1.0 / strides[name] for name in config.features)
    return multilevel_roi_align(
        levels,
        rois,
        roi_levels(config, strides, rois),
        spatial_scales=scales,
        output_size=config.output_size,
        sampling_ratio=config.sampling_ratio,
        aligned=config.aligned,
        reduction=config.reduction,
    )


def roi_levels(config: PoolerConfig, strides: Mapping[str, int], rois: Float[Array, "*B R 4"]) -> Int[Array, "*B R"]:
    """From which of `config.features` each RoI is pooled, as an index."""
    return assign_levels(
        rois,
        num_levels=len(config.features),
        min_level=strides[config.features[0]].bit_length() - 1,
        canonical_size=config.canonical_size,
        canonical_level=config.canonical_level,
        convention=config.level_convention,
    )


Pool = Callable[
    [PoolerConfig, Mapping[str, Float[Array, "B _ _ C"]], Mapping[str, int], Float[Array, "B R 4"]],
    Float[Array, "B R P P C"],
]
