"""RoI pooling from the level of the pyramid that fits a RoI's size (FPN, equation 1).

How a RoI is pooled is open: whatever derives from `RoIPoolerConfig` may stand wherever a configuration has a pooler.
`docs/extending.md` says what it has to do. Shape letters: `B` images, `R` RoIs, `P` side of the pooled grid, `C`
channels.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
from jaxtyping import Array, Float, Int

from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid
from mask_rcnn_jax.ops.pooling.roi_align import assign_levels, multilevel_roi_align
from mask_rcnn_jax.ops.pooling.roi_pool import multilevel_roi_pool
from mask_rcnn_jax.ops.pooling.warp import warp
from mask_rcnn_jax.ranges import AboveZero, Items, NotNegative, Range


@dataclass(frozen=True, kw_only=True)
class RoIPoolerConfig(abc.ABC):
    """Settings of a pooler: those that all have, and from which level a RoI is pooled."""

    output_size: Annotated[int, Range(1, 1024)] = 7
    features: Annotated[tuple[str, ...], Items(1)] = ("p2", "p3", "p4", "p5")
    canonical_size: AboveZero = 224.0  # a RoI of this side belongs to `canonical_level`
    canonical_level: Annotated[int, Range(0, 30)] = 4
    level_convention: Literal["detectron2", "torchvision"] = "detectron2"  # where the epsilon stands

    @abc.abstractmethod
    def pool(
        self,
        features: Mapping[str, Float[Array, "B _ _ C"]],
        strides: Mapping[str, int],
        rois: Float[Array, "B R 4"],
    ) -> Float[Array, "B R P P C"]:
        """Pool each RoI (pixels of the padded image) from its level; padded RoIs, all zeros, give finite features."""


@dataclass(frozen=True, kw_only=True)
class PoolerConfig(RoIPoolerConfig):
    """RoIAlign (Mask R-CNN)."""

    sampling_ratio: Annotated[int, Range(0, 1024)] = 0  # samples a bin and axis; 0 is adaptive: ceil(RoI side / bins)
    aligned: bool = True  # half-pixel correct; False is torchvision's (and the first Detectron's)
    reduction: Literal["average", "max"] = "average"

    @jax.named_scope("roi_align")
    def pool(
        self,
        features: Mapping[str, Float[Array, "B _ _ C"]],
        strides: Mapping[str, int],
        rois: Float[Array, "B R 4"],
    ) -> Float[Array, "B R P P C"]:
        maps, levels = [features[name] for name in self.features], roi_levels(self, strides, rois)
        scales = tuple(1.0 / strides[name] for name in self.features)
        grid = RoIGrid(self.output_size, self.sampling_ratio, self.aligned)
        return multilevel_roi_align(maps, rois, levels, scales, grid, self.reduction)


@dataclass(frozen=True, kw_only=True)
class RoIPoolConfig(RoIPoolerConfig):
    """RoIPool (Fast R-CNN)."""

    @jax.named_scope("roi_pool")
    def pool(
        self,
        features: Mapping[str, Float[Array, "B _ _ C"]],
        strides: Mapping[str, int],
        rois: Float[Array, "B R 4"],
    ) -> Float[Array, "B R P P C"]:
        levels, scales = roi_levels(self, strides, rois), tuple(1.0 / strides[name] for name in self.features)
        return multilevel_roi_pool([features[name] for name in self.features], rois, levels, scales, self.output_size)


@dataclass(frozen=True, kw_only=True)
class WarpConfig(RoIPoolerConfig):
    """Crops warped to a square with some of their surroundings (R-CNN), of one feature: the image, as a rule."""

    output_size: Annotated[int, Range(1, 1024)] = 224
    features: Annotated[tuple[str, ...], Items(1)] = ("image",)
    context: NotNegative = 16  # pixels of a crop on each of its sides that are not the RoI's

    def __post_init__(self) -> None:
        if len(self.features) > 1:
            raise ValueError(f"a RoI is cut out of one feature, not of {', '.join(self.features)}")
        if 2 * self.context >= self.output_size:
            raise ValueError(f"context {self.context} on both sides leaves nothing of output_size {self.output_size}")

    @jax.named_scope("warp")
    def pool(
        self,
        features: Mapping[str, Float[Array, "B _ _ C"]],
        strides: Mapping[str, int],
        rois: Float[Array, "B R 4"],
    ) -> Float[Array, "B R P P C"]:
        (name,) = self.features
        return warp(features[name], rois / strides[name], self.output_size, self.context)


def pool(
    config: RoIPoolerConfig,
    features: Mapping[str, Float[Array, "B _ _ C"]],
    strides: Mapping[str, int],
    rois: Float[Array, "B R 4"],
) -> Float[Array, "B R P P C"]:
    """Pool as the configuration does; an exporter puts a form of its own in the place of this function."""
    return config.pool(features, strides, rois)


def roi_levels(config: RoIPoolerConfig, strides: Mapping[str, int], rois: Float[Array, "*B R 4"]) -> Int[Array, "*B R"]:
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
    [RoIPoolerConfig, Mapping[str, Float[Array, "B _ _ C"]], Mapping[str, int], Float[Array, "B R 4"]],
    Float[Array, "B R P P C"],
]
