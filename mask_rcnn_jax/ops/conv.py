"""Convolution of images, whose gradients take the form that is fast where they run.

Shape letters: `B` images, `H W` height and width, `I O` channels in and out, `J` of a group, `K` side of a kernel.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mask_rcnn_jax.ops._loops import zero_of

_CHUNK = 512  # cells; of 256, 512 and 1024 the fastest, by 10 % and less


class Window(NamedTuple):
    """How a kernel moves over an image: the same along both axes, with a border of zeros."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


def conv2d(
    x: Float[Array, "B H W I"], kernel: Float[Array, "K K J O"], window: Window, groups: int = 1
) -> Float[Array, "B H2 W2 O"]:
    """Cross-correlation of `x` with `kernel`, as `torch.nn.functional.conv2d`; the result has the type of `x`.

    Gradients have forms of their own: of a kernel of one cell both are products, and on CPU that of a larger kernel is
    a product with patches, in a quarter to two thirds of the time of XLA's convolution for it.
    """
    if groups > 1 or window.stride > 1:
        return _xla(x, kernel, window, groups)
    # Inside `jax.shard_map` the kernel then varies over the mesh as the image does, and so may its gradient.
    return _conv(window, x, kernel + zero_of(x).astype(kernel.dtype))


def _xla(x: Array, kernel: Array, window: Window, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride, window.stride),
        padding=[(window.padding, window.padding)] * 2,
        rhs_dilation=(window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(window: Window, x: Array, kernel: Array) -> Array:
    return _xla(x, kernel, window)


def _conv_fwd(window: Window, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv(window, x, kernel), (x, kernel)


def _conv_bwd(window: Window, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    if kernel.shape[0] == kernel.shape[1] == 1 and window.padding == 0:
        # Of two axes: products of four have transposed copies.
        flat_x, flat_gradient = (array.reshape(-1, array.shape[-1]) for array in (x, gradient))
        return (flat_gradient @ kernel[0, 0].T).reshape(x.shape), (flat_x.T @ flat_gradient)[None, None]
    _, of_x = jax.vjp(lambda x: _xla(x, kernel, window), x)
    _, of_kernel = jax.vjp(lambda kernel: _xla(x, kernel, window), kernel)
    on_cpu = partial(kernel_gradient, kernel.shape[0], window)
    return of_x(gradient)[0], lax.platform_dependent(x, gradient, cpu=on_cpu, default=lambda _, g: of_kernel(g)[0])


_conv.defvjp(_conv_fwd, _conv_bwd)


def kernel_gradient(
    side: int, window: Window, x: Float[Array, "B H W I"], gradient: Float[Array, "B H2 W2 O"]
) -> Float[Array, "K K I O"]:
    """The gradient of a kernel that moves by single cells: products of `gradient` with what each cell saw.

    Images with their border are laid out as one row of cells, in which a cell of the kernel sees the row moved by a
    fixed distance. Chunks of the row follow one another, so that what is copied stays in a core's cache.
    """
    batch, height, width, _ = x.shape
    height, width = height + 2 * window.padding, width + 2 * window.padding
    distances = [
        window.dilation * (row * width + column) for row, column in itertools.product(range(side), range(side))
    ]
    num_chunks = -(-(batch * height * width) // _CHUNK)
    seen = _as_row(x, window.padding, window.padding, num_chunks * _CHUNK + distances[-1])
    gradient = _as_row(gradient, 0, window.dilation * (side - 1), num_chunks * _CHUNK)

    def add_chunk(number, total):
        begin = number * _CHUNK
        cells = lax.dynamic_slice_in_dim(seen, begin, _CHUNK + distances[-1])
        patches = jnp.concatenate([cells[distance : distance + _CHUNK] for distance in distances], axis=1)
        rows = lax.dynamic_slice_in_dim(gradient, begin, _CHUNK)
        return total + rows.T @ patches

    outputs = gradient.shape[-1]
    total = jnp.full((outputs, side * side * x.shape[-1]), zero_of(x, gradient))
    total = lax.fori_loop(0, num_chunks, add_chunk, total)
    return total.T.reshape(side, side, x.shape[-1], outputs)


def _as_row(images: Float[Array, "B H W C"], before: int, after: int, length: int) -> Float[Array, "N C"]:
    """The images' cells one after the other, with a border of zeros, and zeros up to `length` cells."""
    border = (before, after)
    row = jnp.pad(images, ((0, 0), border, border, (0, 0))).reshape(-1, images.shape[-1])
    return jnp.pad(row, ((0, length - row.shape[0]), (0, 0)))
