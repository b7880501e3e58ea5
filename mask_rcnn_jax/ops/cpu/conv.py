"""Convolutions and their gradients as products, in the order in which a CPU has them in its cache.

Shape letters: `B` images, `H W` height and width, `I O` channels in and out, `K` side of a kernel, `N` cells of all
images.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mask_rcnn_jax.ops.loops import zero_of

_CHUNK = 512  # cells; of 256, 512 and 1024 the fastest, by 10 % and less
# XLA's products on CPU (with AVX-512) sum 64 columns at once over one row of inputs after the other, as PyTorch's
# convolutions do, and fewer columns in two or four parts.
_COLUMNS_AT_ONCE = 64
_COLUMNS_TO_FILL = 8  # a network's widths; the RPN's 3 and 12 would take twice the time


class Window(NamedTuple):
    """The movement of a kernel over an image: the same along both axes, with zero padding."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


def product_with_cells(
    stride: int, x: Float[Array, "B H W I"], kernel: Float[Array, "1 1 I O"]
) -> Float[Array, "B H2 W2 O"]:
    """Convolve with a kernel of one cell."""
    x = x[:, ::stride, ::stride]
    inputs, outputs = kernel.shape[2:]
    fills = outputs < _COLUMNS_AT_ONCE and outputs % _COLUMNS_TO_FILL == 0
    filled = _COLUMNS_AT_ONCE if fills else outputs
    columns = jnp.pad(kernel[0, 0], ((0, 0), (0, filled - outputs)))
    return (x.reshape(-1, inputs) @ columns)[:, :outputs].reshape(*x.shape[:3], outputs)


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
