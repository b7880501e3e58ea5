"""RoIAlign (Mask R-CNN, section 3) on one feature map or on a pyramid.

Shape letters: `H W` sides of a feature map, `R` RoIs, `P` bins a side, `S` samples a bin and axis.

`roi_align` is the plain form: it gathers samples and reduces them by average or maximum. `multilevel_roi_align`, which
models call, weighs the cells that samples lie between instead, `Wy @ F @ Wx.T`. `_by_platform` chooses how: on CPU and
TPU it goes from RoI to RoI, on GPU it gathers the cells of all RoIs at once. No gradient of it scatters in any order,
so all are deterministic; for the maximum see `roi_align_max`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ops.cpu import roi_align_taps as taps
from mask_rcnn_jax.ops.cpu import roi_align_windows as windows
from mask_rcnn_jax.ops.gpu import roi_align_gather as gather
from mask_rcnn_jax.ops.gpu import roi_align_matrix as matrix
from mask_rcnn_jax.ops.gpu import roi_align_sums as sums
from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid
from mask_rcnn_jax.ops.pooling.roi_align_max import multilevel_roi_align_max
from mask_rcnn_jax.ops.precision import at_least_float32


def assign_levels(
    rois: Float[Array, "*B R 4"],
    num_levels: int,
    min_level: int = 2,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    convention: Literal["detectron2", "torchvision"] = "detectron2",
) -> Int[Array, "*B R"]:
    """Index of the pyramid level each RoI is pooled from (FPN, equation 1), 0 for level `min_level`.

    `floor(canonical_level + log2(sqrt(area) / canonical_size))`, clamped to the levels there are. The conventions
    differ in where they add an epsilon: inside the logarithm (1e-8) or outside (1e-6). Padded RoIs get level 0.
    """
    area = box_ops.area(rois)
    ratio = jnp.sqrt(jnp.where(area > 0, area, 1e-12)) / canonical_size
    if convention == "detectron2":
        level = jnp.floor(canonical_level + jnp.log2(ratio + 1e-8))
    else:
        level = jnp.floor(canonical_level + jnp.log2(ratio) + 1e-6)
    return jnp.clip(level - min_level, 0, num_levels - 1).astype(jnp.int32)


def roi_align(
    features: Float[Array, "H W C"],
    rois: Float[Array, "R 4"],
    spatial_scale: float,
    grid: RoIGrid,
    reduction: Literal["average", "max"] = "average",
) -> Float[Array, "R P P C"]:
    """RoIAlign of one feature map by gathering samples, RoI by RoI: the plain form.

    `rois` are in image pixels and `spatial_scale` takes them to cells. Adaptive sampling takes at most as many samples
    as a RoI as large as the feature map has. Samples beyond the map by more than a cell are 0. Padded RoIs give finite
    values (zeros for aligned adaptive sampling). Differentiable in `features`.
    """
    height, width, channels = features.shape

    def pool(roi: Float[Array, "4"]) -> Float[Array, "P P C"]:
        at_y, inside_y, num_y = _samples(grid, roi[1::2], height)
        at_x, inside_x, num_x = _samples(grid, roi[0::2], width)
        rows = _interpolate(at_least_float32(features), at_y.reshape(-1))
        samples = _interpolate(rows.swapaxes(0, 1), at_x.reshape(-1)).swapaxes(0, 1)
        samples = samples.reshape(*at_y.shape, *at_x.shape, channels)
        drawn = (jnp.arange(at_y.shape[1]) < num_y)[:, None, None] & (jnp.arange(at_x.shape[1]) < num_x)
        samples = jnp.where((inside_y[:, :, None, None] & inside_x)[..., None], samples, 0)
        if reduction == "average":
            return jnp.sum(jnp.where(drawn[..., None], samples, 0), axis=(1, 3)) / jnp.maximum(num_y * num_x, 1)
        highest = jnp.max(jnp.where(drawn[..., None], samples, -jnp.inf), axis=(1, 3))
        return jnp.where(num_y * num_x > 0, highest, 0)

    pooled = jax.lax.map(pool, grid.to_cells(rois, spatial_scale))
    return pooled.astype(features.dtype)


def multilevel_roi_align(
    features: Sequence[Float[Array, "*B _ _ C"]],
    rois: Float[Array, "*B R 4"],
    levels: Int[Array, "*B R"],
    spatial_scales: Sequence[float],
    grid: RoIGrid,
    reduction: Literal["average", "max"] = "average",
) -> Float[Array, "*B R P P C"]:
    """RoIAlign of a pyramid: RoI r is pooled from `features[levels[r]]`.

    Arguments and padding as in `roi_align`, of one image or of several at once: `jax.vmap` would run the loops over
    RoIs of all images in lockstep. Coordinates and accumulation are float32 or wider; the result has the type of the
    features. Differentiable in `features` only (reverse mode). A maximum's gradient goes to the first of equal samples.
    """
    if rois.ndim == 2:
        images = [level[None] for level in features]
        return multilevel_roi_align(images, rois[None], levels[None], spatial_scales, grid, reduction)[0]
    if len(features) != len(spatial_scales):
        raise ValueError(f"{len(features)} feature maps but {len(spatial_scales)} spatial scales")
    if rois.shape[1] == 0:
        sides = grid.output_size, grid.output_size
        return jnp.zeros((*rois.shape[:2], *sides, features[0].shape[-1]), features[0].dtype)
    cells = grid.to_cells(jax.lax.stop_gradient(rois), jnp.array(spatial_scales, rois.dtype)[levels][..., None])
    if reduction == "max":
        maps = tuple(at_least_float32(level) for level in features)
        return multilevel_roi_align_max(maps, cells, levels, grid).astype(features[0].dtype)
    of_one_type = tuple(level.astype(jnp.result_type(*features)) for level in features)
    pooled: Array = _average(grid, of_one_type, cells, levels)
    return pooled.astype(features[0].dtype)


class _Forms(NamedTuple):
    """Implementations of one thing. The last is also what an exporter translates that knows its operations."""

    cpu: Callable
    gpu: Callable
    tpu: Callable
    elsewhere: Callable


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(grid: RoIGrid, features, rois, levels):
    of_images = jax.vmap(matrix.forward, in_axes=(None, 0, 0, 0))
    forms = _Forms(taps.forward, gather.forward, windows.forward, of_images)
    return _by_platform(forms, grid, features, rois, levels)


def _average_fwd(grid: RoIGrid, features, rois, levels):
    return _average(grid, features, rois, levels), (features, rois, levels)


def _average_bwd(grid: RoIGrid, residuals, gradient):
    features, rois, levels = residuals
    of_images = jax.vmap(matrix.backward, in_axes=(None, 0, 0, 0, 0))
    forms = _Forms(windows.backward, sums.backward, windows.backward, of_images)
    of_features = _by_platform(forms, grid, features, rois, levels, gradient)
    return of_features, jnp.zeros_like(rois), None


_average.defvjp(_average_fwd, _average_bwd)


def _by_platform(forms: _Forms, grid: RoIGrid, features, *operands):
    """Run the implementation for the device; results have the type of the features."""
    dtype = features[0].dtype

    def of_type(form: Callable, features, *operands):
        return jax.tree.map(lambda x: x.astype(dtype), form(grid, features, *operands))

    def of_float32(form: Callable, features, rois, levels, *gradient):
        wide = [at_least_float32(level) for level in features]
        return of_type(form, tuple(wide), rois, levels, *map(at_least_float32, gradient))

    return jax.lax.platform_dependent(
        features,
        *operands,
        cpu=partial(of_float32, forms.cpu),
        cuda=partial(of_type, forms.gpu),
        rocm=partial(of_type, forms.gpu),
        tpu=partial(of_type, forms.tpu),
        default=partial(of_float32, forms.elsewhere),
    )


def _samples(
    grid: RoIGrid, extent: Float[Array, "2"], length: int
) -> tuple[Float[Array, "P S"], Bool[Array, "P S"], Float[Array, ""]]:
    """Positions of samples along an axis, clamped to it, which of them are on the map, and how many a bin uses."""
    start, end = extent
    bin_side = (end - start) / grid.output_size
    most = grid.sampling_ratio or math.ceil(length / grid.output_size)
    num = jnp.full_like(bin_side, most) if grid.sampling_ratio else jnp.clip(jnp.ceil(bin_side), 0, most)
    within = (jnp.arange(most) + 0.5) / jnp.maximum(num, 1)
    at = start + (jnp.arange(grid.output_size)[:, None] + within) * bin_side
    return jnp.clip(at, 0, length - 1), (at >= -1) & (at <= length), num


def _interpolate(values, at):
    """Linear interpolation of the first axis of `values` at positions in [0, length - 1]."""
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, values.shape[0] - 1)
    fraction = (at - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - fraction) + values[high] * fraction
