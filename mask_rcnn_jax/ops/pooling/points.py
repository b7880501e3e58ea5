"""Values of maps at points between their cells, and the points that PointRend takes them at.

Maps are interpolated as `torch.nn.functional.grid_sample` does it without aligned corners: the centre of the first cell
lies half a cell from the edge, and beyond the map there are zeros. Shape letters: `M` maps, `H W` their sides, `C`
channels, `N` points, `R` RoIs, `P` points of a RoI, `S` side of a mask, `K` its channels, `G` ground-truth slots.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt8

from mask_rcnn_jax.ops.gpu.running_sums import running_sums
from mask_rcnn_jax.ops.loops import zero_of
from mask_rcnn_jax.ops.precision import EXACT, at_least_float32

_OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a point's four cells (y, x) from the first


class _Taps(NamedTuple):
    """The four cells around every point."""

    first: Int[Array, " N"]  # the number of the first, on maps with a row above and a column to the left
    cells: Int[Array, "4 N"]  # their numbers; those beyond the map have others' and no weight
    weights: Float[Array, "4 N"]


def sample_points(
    maps: Float[Array, "M H W C"], at: Int[Array, " N"], points: Float[Array, "N 2"]
) -> Float[Array, "N C"]:
    """Interpolate `maps[at[n]]` at point n, (x, y) in cells from the map's corner; the result has the type of the maps.

    Coordinates and sums are float32 or wider. Differentiable in `maps` only (reverse mode): the gradient is a sum in
    one order, on CPU point by point and elsewhere over points that are sorted by their cells.
    """
    sampled: Array = _sample(at_least_float32(maps), at, jax.lax.stop_gradient(points))
    return sampled.astype(maps.dtype)


@jax.custom_vjp
def _sample(maps: Array, at: Array, points: Array) -> Array:
    return _interpolate(maps, _taps(maps.shape[:3], at, points))


def _sample_fwd(maps: Array, at: Array, points: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _sample(maps, at, points), (maps, at, points)


def _sample_bwd(residuals: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, None, Array]:
    maps, at, points = residuals
    taps = _taps(maps.shape[:3], at, points)
    cpu, elsewhere = (partial(form, maps.shape) for form in (_spread_in_turn, _spread_sorted))
    of_maps = jax.lax.platform_dependent(taps, gradient, cpu=cpu, default=elsewhere)
    of_maps = of_maps.astype(maps.dtype)  # points may be wider
    return of_maps, None, jnp.zeros_like(points)


_sample.defvjp(_sample_fwd, _sample_bwd)


def _taps(shape: tuple[int, ...], at: Int[Array, " N"], points: Float[Array, "N 2"]) -> _Taps:
    _, height, width = shape
    position = at_least_float32(points) - 0.5
    sides = jnp.array([width, height], jnp.int32)
    first = jnp.clip(jnp.floor(position), -1, sides - 1).astype(jnp.int32)
    cells, weights = [], []
    for offset in _OFFSETS:
        cell = first + jnp.array(offset[::-1], jnp.int32)
        inside = jnp.all((cell >= 0) & (cell < sides), axis=-1)
        near = jnp.maximum(1 - jnp.abs(position - cell), 0)
        weights.append(jnp.where(inside, near[:, 0] * near[:, 1], 0))
        x, y = jnp.moveaxis(jnp.clip(cell, 0, sides - 1), -1, 0)
        cells.append((at * height + y) * width + x)
    bordered = (at * (height + 1) + first[:, 1] + 1) * (width + 1) + first[:, 0] + 1
    return _Taps(bordered, jnp.stack(cells), jnp.stack(weights))


def _interpolate(maps: Num[Array, "M H W C"], taps: _Taps) -> Float[Array, "N C"]:
    flat = maps.reshape(-1, maps.shape[-1])
    total = jnp.zeros((), taps.weights.dtype)
    for cell, weight in zip(taps.cells, taps.weights, strict=True):
        values = flat.at[cell].get(mode="promise_in_bounds", wrap_negative_indices=False)
        total += at_least_float32(values) * weight[:, None]
    return total


def _spread_in_turn(shape: tuple[int, ...], taps: _Taps, gradient: Float[Array, "N C"]) -> Float[Array, "M H W C"]:
    """The gradient of the maps, one point after the other."""
    total = jnp.full((math.prod(shape[:3]), shape[3]), zero_of(gradient, taps.weights))
    for cell, weight in zip(taps.cells, taps.weights, strict=True):
        total = total.at[cell].add(weight[:, None] * gradient, mode="promise_in_bounds", wrap_negative_indices=False)
    return total.reshape(shape)


def _spread_sorted(shape: tuple[int, ...], taps: _Taps, gradient: Float[Array, "N C"]) -> Float[Array, "M H W C"]:
    """The gradient of the maps without a scatter, which a GPU adds up in any order.

    Points are sorted by their first cell, running sums start anew with every cell, and the cell takes the last of its.
    """
    maps, height, width, channels = shape
    order = jnp.argsort(taps.first)
    first = taps.first[order]
    begins = jnp.concatenate([jnp.ones_like(first[:1], bool), first[1:] != first[:-1]])[:, None]
    cells = jnp.arange(maps * (height + 1) * (width + 1), dtype=first.dtype)
    last = jnp.searchsorted(first, cells, side="right") - 1
    touched = (last >= 0) & (first[jnp.maximum(last, 0)] == cells)

    def of_tap(weight: Float[Array, " N"]) -> Float[Array, "M _ _ C"]:
        sums = running_sums(begins, (weight[:, None] * gradient)[order])
        return jnp.where(touched[:, None], sums[jnp.maximum(last, 0)], 0).reshape(maps, height + 1, width + 1, channels)

    by_tap, total = jax.lax.map(of_tap, taps.weights), jnp.zeros((), gradient.dtype)
    for tap, (y, x) in enumerate(_OFFSETS):
        total += by_tap[tap, :, 1 - y : 1 - y + height, 1 - x : 1 - x + width]
    return total


def sample_coarse(coarse: Float[Array, "R K S S"], points: Float[Array, "R P 2"]) -> Float[Array, "R P K"]:
    """Interpolate small maps at points (x, y) relative to them, in [0, 1]: a product, and so are its gradients."""
    rois, channels, side, _ = coarse.shape
    position = at_least_float32(points)[..., None] * side - 0.5
    near = jnp.maximum(1 - jnp.abs(position - jnp.arange(side)), 0)
    weights = near[:, :, 1, :, None] * near[:, :, 0, None, :]
    flat = at_least_float32(coarse).reshape(rois, channels, side * side)
    sampled = jnp.einsum("rps,rks->rpk", weights.reshape(rois, -1, side * side), flat, precision=EXACT)
    return sampled.astype(coarse.dtype)


def mask_labels(
    masks: UInt8[Array, "G Ch Cw"],
    regions: Float[Array, "G 4"],
    points: Float[Array, "R P 2"],
    gt_index: Int[Array, " R"],
) -> Float[Array, "R P"]:
    """Interpolate the coverage, in [0, 1], of `masks[gt_index[r]]` at points (x, y) in the coordinates of `regions`.

    For a full bitmap, of region (0, 0, W, H), this is PointRend's `sample_point_labels`. Outside its region a mask is
    0. Padded RoIs and regions give finite values, to be ignored.
    """
    region = regions[gt_index][:, None]
    sides = region[..., 2:] - region[..., :2]
    cells = jnp.array([masks.shape[2], masks.shape[1]], points.dtype)
    position = (points - region[..., :2]) / jnp.where(sides > 0, sides, 1) * cells
    at = jnp.broadcast_to(gt_index[:, None], points.shape[:2]).reshape(-1)
    taps = _taps(masks.shape, at, position.reshape(-1, 2))
    return _interpolate(masks[..., None], taps).reshape(points.shape[:2]) / 255.0


def place_in_boxes(points: Float[Array, "*N P 2"], boxes: Float[Array, "*N 4"]) -> Float[Array, "*N P 2"]:
    """Return points that are relative to boxes, in [0, 1], in the coordinates of the boxes."""
    return points * (boxes[..., None, 2:] - boxes[..., None, :2]) + boxes[..., None, :2]


def grid_points(side: int) -> Float[Array, "P 2"]:
    """Return the centres (x, y) of the cells of a grid over [0, 1], row by row."""
    return cell_points(jnp.arange(side * side), side)


def cell_points(cells: Int[Array, "*N"], side: int) -> Float[Array, "*N 2"]:
    """Return the centres (x, y) of cells of a grid over [0, 1], numbered row by row."""
    at = jnp.stack([cells % side, cells // side], axis=-1)
    return (at.astype(jnp.float32) + 0.5) / side


def spread_points(num: int) -> Float[Array, "{num} 2"]:
    """Return points (x, y) that fill [0, 1] evenly, and so do the first few of them: what stands in for a draw.

    They are the multiples of (1 / r, 1 / r^2) modulo 1, with the real root r of x^3 = x + 1.
    """
    root = 1.324717957244746
    return (0.5 + jnp.arange(1, num + 1)[:, None] * jnp.array([1 / root, 1 / root**2])) % 1.0


def important_points(
    candidates: Float[Array, "R N 2"], logits: Float[Array, "R N"], num: int, num_uncertain: int
) -> Float[Array, "R {num} 2"]:
    """Choose the `num_uncertain` candidates whose logits are nearest to 0, and of the others the first.

    Of candidates drawn independently the first others are a draw among the others.
    """
    order = jnp.argsort(jnp.abs(logits), axis=-1)
    others = jnp.sort(order[:, num_uncertain:], axis=-1)[:, : num - num_uncertain]
    chosen = jnp.concatenate([order[:, :num_uncertain], others], axis=-1)
    return jnp.take_along_axis(candidates, chosen[..., None], axis=1)


def doubled(logits: Float[Array, "R S S"]) -> Float[Array, "R 2*S 2*S"]:
    """Interpolate maps bilinearly on a grid of half the cells, as `torch.nn.functional.interpolate`."""
    number, side, _ = logits.shape
    return jax.image.resize(logits, (number, 2 * side, 2 * side), "linear")


def uncertain_cells(logits: Float[Array, "R S S"], num: int) -> Int[Array, "R P"]:
    """Return the numbers, row by row, of the `num` cells (or all) whose logits are nearest to 0, nearest first."""
    flat = jnp.abs(logits).reshape(logits.shape[0], -1)
    return jax.lax.top_k(-flat, min(num, flat.shape[1]))[1]


def with_cells(
    logits: Float[Array, "R S S"], cells: Int[Array, "R P"], values: Float[Array, "R P"]
) -> Float[Array, "R S S"]:
    """Return `logits` with `values` in cells that are numbered row by row, each at most once."""

    def of_one(flat: Float[Array, " C"], cells: Int[Array, " P"], values: Float[Array, " P"]) -> Float[Array, " C"]:
        return flat.at[cells].set(values, mode="promise_in_bounds", unique_indices=True, wrap_negative_indices=False)

    return jax.vmap(of_one)(logits.reshape(logits.shape[0], -1), cells, values).reshape(logits.shape)
