"""RoIAlign of a pyramid as two dense products a level: the paper's sum, for any device and for exporters.

A RoI's features are `Wy @ F @ Wx.T` over the whole level, without a gather or, backward, a scatter. Chunks of RoIs
bound the memory of the intermediate product. Products have the full precision of float32: weights are coordinates.

Shape letters: `H W` sides of a level, `R` RoIs, `P` bins a side.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.ops.pooling.interpolation import RoIGrid, axis_weights
from mask_rcnn_jax.ops.precision import EXACT

_CHUNK_BYTES = 64 * 2**20


def forward(
    grid: RoIGrid, features: tuple[Float[Array, "_ _ C"], ...], rois: Float[Array, "R 4"], levels: Int[Array, " R"]
) -> Float[Array, "R P P C"]:
    """RoI features of one image; `features` are float32 or wider, `rois` in cells of their levels."""
    pooled = [_pool_level(grid, level, rois, levels == index) for index, level in enumerate(features)]
    return sum(pooled[1:], start=pooled[0])


def backward(
    grid: RoIGrid,
    features: tuple[Float[Array, "_ _ C"], ...],
    rois: Float[Array, "R 4"],
    levels: Int[Array, " R"],
    gradient: Float[Array, "R P P C"],
) -> tuple[Float[Array, "_ _ C"], ...]:
    """Gradient of the features, given that of the RoI features; `rois` are in cells of their levels."""
    _, transpose = jax.vjp(lambda maps: forward(grid, maps, rois, levels), features)
    return transpose(gradient)[0]


def _pool_level(
    grid: RoIGrid, features: Float[Array, "H W C"], rois: Float[Array, "R 4"], here: Bool[Array, " R"]
) -> Float[Array, "R P P C"]:
    """RoI features from one level; zeros for RoIs that are not `here` but of other levels."""
    height, width, channels = features.shape
    bins = grid.output_size
    weights_y, weights_x = axis_weights(grid, rois[:, 1::2], height), axis_weights(grid, rois[:, 0::2], width)
    weights_y = jnp.where(here[:, None, None], weights_y, 0)

    def pool(weights):
        along_y, along_x = weights
        rows = jnp.einsum("ph,hwc->pwc", along_y, features, precision=EXACT)
        # Batched over p rather than contracted as [q, w] x [w, (p, c)], which would transpose the larger operand.
        return jnp.einsum("pqw,pwc->pqc", jnp.broadcast_to(along_x, (bins, bins, width)), rows, precision=EXACT)

    chunk = max(1, _CHUNK_BYTES // (4 * bins * width * channels))
    if chunk >= rois.shape[0]:
        return jax.vmap(pool)((weights_y, weights_x))
    return jax.lax.map(pool, (weights_y, weights_x), batch_size=chunk)
