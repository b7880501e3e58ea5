"""RoIPool (Fast R-CNN, section 2.1) on one feature map or on a pyramid: the maximum of the cells of each bin.

Corners are rounded to whole cells and bins cut in whole cells, so that the bins of a small RoI share cells. Values and
gradients are those of torchvision's `roi_pool`: an empty bin is 0, and a gradient goes to the first of equal maxima.

Shape letters: `B` images, `H W` sides of a feature map, `R` RoIs, `N` any number of them, `P` bins a side, `C`
channels, `L` cells of all levels of all images, one after the other; `U` numbers to be added to them.
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from mask_rcnn_jax.ops.gpu.running_sums import running_sums
from mask_rcnn_jax.ops.loops import as_index, zero_of
from mask_rcnn_jax.ops.pooling.cells import all_cells
from mask_rcnn_jax.ops.precision import at_least_float32

_FARTHEST = 2.0**20  # cells from a map's origin: integers hold any bin of a RoI that ends there


class _Bins(NamedTuple):
    """The cells of every bin: rows and columns of a map, from the first to the one before `stop`."""

    first_y: Int[Array, "*N P"]
    stop_y: Int[Array, "*N P"]
    first_x: Int[Array, "*N P"]
    stop_x: Int[Array, "*N P"]
    origin: Int[Array, "*N"]  # number of the map's first cell among those of all maps
    width: Int[Array, "*N"]  # of the map


def roi_pool(
    features: Float[Array, "H W C"], rois: Float[Array, "R 4"], spatial_scale: float, output_size: int
) -> Float[Array, "R P P C"]:
    """RoIPool of one feature map; `rois` are in image pixels and `spatial_scale` takes them to cells."""
    return multilevel_roi_pool([features], rois, jnp.zeros(len(rois), jnp.int32), (spatial_scale,), output_size)


def multilevel_roi_pool(
    features: Sequence[Float[Array, "*B _ _ C"]],
    rois: Float[Array, "*B R 4"],
    levels: Int[Array, "*B R"],
    spatial_scales: Sequence[float],
    output_size: int,
) -> Float[Array, "*B R P P C"]:
    """RoIPool of a pyramid: RoI r is pooled from `features[levels[r]]`, of one image or of several at once.

    A RoI is at least one cell a side, so padded RoIs have the value of a map's first cell. Bins are cut in the type of
    the RoIs, float32 or wider, as the edges of some depend on it. Differentiable in `features` only (reverse mode).
    """
    if rois.ndim == 2:
        images = [level[None] for level in features]
        return multilevel_roi_pool(images, rois[None], levels[None], spatial_scales, output_size)[0]
    if len(features) != len(spatial_scales):
        raise ValueError(f"{len(features)} feature maps but {len(spatial_scales)} spatial scales")
    channels, bins_of_image = features[0].shape[-1], (rois.shape[1], output_size, output_size)
    if rois.shape[1] == 0:
        return jnp.zeros((rois.shape[0], *bins_of_image, channels), features[0].dtype)
    shapes = [(level.shape[1], level.shape[2]) for level in features]
    bins = _cut(at_least_float32(lax.stop_gradient(rois)), levels, shapes, tuple(spatial_scales), output_size)
    cells = all_cells(features)
    bins = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), bins)
    highest: Array = _highest(cells.shape[0], cells, bins)
    return highest.reshape(-1, *bins_of_image, channels)


# --- The cells of bins ------------------------------------------------------------------------------------------------


def _cut(
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    shapes: Sequence[tuple[int, int]],
    scales: tuple[float, ...],
    bins: int,
) -> _Bins:
    heights, widths = zip(*shapes, strict=True)
    areas = [height * width for height, width in shapes]
    corners = rois * _of_level(np.array(scales, rois.dtype), levels)[..., None]
    # As C's `round`, half away from zero; jnp.round goes to even numbers.
    corners = lax.round(jnp.clip(corners, -_FARTHEST, _FARTHEST), lax.RoundingMethod.AWAY_FROM_ZERO)
    rows = _cut_axis(corners[..., 1], corners[..., 3], heights, levels, bins)
    columns = _cut_axis(corners[..., 0], corners[..., 2], widths, levels, bins)
    images = jnp.arange(rois.shape[0], dtype=jnp.int32)[:, None]
    origin = images * sum(areas) + _of_level(np.array([0, *accumulate(areas[:-1])], np.int32), levels)
    return _Bins(*rows, *columns, origin, _of_level(np.array(widths, np.int32), levels))


def _cut_axis(
    start: Float[Array, "B R"], end: Float[Array, "B R"], lengths: tuple[int, ...], levels: Int[Array, "B R"], bins: int
) -> tuple[Int[Array, "B R P"], Int[Array, "B R P"]]:
    """Return the first cell of each bin along an axis, and the one after its last, both clipped to the map."""
    side = _divided(jnp.maximum(end - start + 1, 1), bins, max(lengths) + 1)[..., None]
    number, length = jnp.arange(bins, dtype=side.dtype), _of_level(np.array(lengths, np.int32), levels)[..., None]
    edges = jnp.floor(number * side), jnp.ceil((number + 1) * side)
    first, stop = (jnp.clip((start[..., None] + edge).astype(jnp.int32), 0, length) for edge in edges)
    return first, stop


def _divided(cells: Float[Array, "B R"], bins: int, longest: int) -> Float[Array, "B R"]:
    """Divide whole numbers by `bins`, rounded as IEEE wants it: an edge moves by a cell where the last bit differs.

    A GPU's division may be less exact, so NumPy divides the numbers up to `longest`, which no RoI inside its image
    exceeds. The barrier is around one divisor for each number: by a single one, XLA multiplies by its inverse.
    """
    quotients = np.arange(longest + 1, dtype=cells.dtype) / np.array(bins, cells.dtype)
    known = jnp.asarray(quotients).at[cells.astype(jnp.int32)].get(mode="clip")
    return jnp.where(cells <= longest, known, cells / lax.optimization_barrier(jnp.full_like(cells, bins)))


def _of_level(values: np.ndarray, levels: Int[Array, "B R"]) -> Num[Array, "B R"]:
    return jnp.asarray(values).at[levels].get(mode="clip")


# --- Their maximum and its gradient -----------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _highest(length: Any, cells: Float[Array, "L C"], bins: _Bins) -> Float[Array, "N P P C"]:
    # `length` is that of the cells, a symbol where an export leaves the number of images open.
    return _search_all(cells, bins)[0]


def _highest_fwd(length: Any, cells: Array, bins: _Bins):
    highest, at = _search_all(cells, bins)
    return highest, at


def _highest_bwd(length: int, at: Int[Array, "N P P C"], gradient: Float[Array, "N P P C"]):
    channels = gradient.shape[-1]
    total = sum_by_cell(length, at.reshape(-1, channels), at_least_float32(gradient).reshape(-1, channels))
    return total.astype(gradient.dtype), None


_highest.defvjp(_highest_fwd, _highest_bwd)


def _search_all(cells: Array, bins: _Bins) -> tuple[Array, Array]:
    """Search RoI by RoI on CPU, where one's features fit into a core's cache, and elsewhere all at once."""
    return lax.platform_dependent(cells, bins, cpu=_search_one_by_one, default=_search)


def _search_one_by_one(cells: Array, bins: _Bins) -> tuple[Array, Array]:
    return lax.map(partial(_search, cells), bins)


def _search(cells: Float[Array, "L C"], bins: _Bins) -> tuple[Float[Array, "*N P P C"], Int[Array, "*N P P C"]]:
    """Return the highest value of each bin and the number of the first cell that has it, or 0 and L for an empty bin.

    All bins go through their cells row by row, at once, for as long as the largest has any.
    """
    num_cells, channels = cells.shape
    wide = jnp.maximum(jnp.max(bins.stop_x - bins.first_x), 1)
    tall = jnp.max(bins.stop_y - bins.first_y)
    origin, width = bins.origin[..., None, None], bins.width[..., None, None]

    def look(step, found):
        highest, at = found
        y, x = bins.first_y + lax.div(step, wide), bins.first_x + lax.rem(step, wide)
        inside = (y < bins.stop_y)[..., :, None] & (x < bins.stop_x)[..., None, :]
        cell = jnp.where(inside, origin + y[..., :, None] * width + x[..., None, :], 0)
        value = cells.at[cell].get(mode="promise_in_bounds", wrap_negative_indices=False)
        higher = inside[..., None] & (value > highest)
        return jnp.where(higher, value, highest), jnp.where(higher, cell[..., None], at)

    shape = (*bins.first_y.shape, bins.first_y.shape[-1], channels)
    zero = zero_of(cells, *bins).astype(cells.dtype)
    nothing = jnp.full(shape, zero + jnp.finfo(cells.dtype).min), jnp.full(shape, zero.astype(jnp.int32) + num_cells)
    highest, at = lax.fori_loop(as_index(0), tall * wide, look, nothing)
    empty = (bins.stop_y <= bins.first_y)[..., :, None] | (bins.stop_x <= bins.first_x)[..., None, :]
    return jnp.where(empty[..., None], 0, highest), at


def sum_by_cell(length: int, at: Int[Array, "U C"], values: Float[Array, "U C"]) -> Float[Array, "{length} C"]:
    """Sum the values that belong to each cell, in an order that is the same in every run.

    `at` is the number of each value's cell; those at `length` and beyond belong to none.
    """
    one_by_one, by_sorting = partial(_add_one_by_one, length), partial(_add_sorted, length)
    return lax.platform_dependent(at, values, cpu=one_by_one, default=by_sorting)


def _add_one_by_one(length: int, at: Int[Array, "U C"], values: Float[Array, "U C"]) -> Float[Array, "{length} C"]:
    """Sum as `sum_by_cell`, in the order of the values; a GPU would in any, and its sums differ from run to run."""
    total = jnp.zeros((length, values.shape[1]), values.dtype)
    return total.at[at, jnp.arange(values.shape[1])].add(values, mode="drop")


def _add_sorted(length: int, at: Int[Array, "U C"], values: Float[Array, "U C"]) -> Float[Array, "{length} C"]:
    """Sum as `_add_one_by_one`, in an order that is the same in every run: sorted by cell, neighbours are added up."""
    at, values = lax.sort((at, values), dimension=0, num_keys=1, is_stable=True)
    begins = jnp.concatenate([jnp.ones_like(at[:1], bool), at[1:] != at[:-1]])

    sums = running_sums(begins, values)
    # The last of a cell's rows has its whole sum; no two of those are of one cell.
    ends = jnp.concatenate([begins[1:], jnp.ones_like(begins[:1])])
    total = jnp.zeros((length, values.shape[1]), values.dtype)
    return total.at[jnp.where(ends, at, length), jnp.arange(values.shape[1])].set(sums, mode="drop")
