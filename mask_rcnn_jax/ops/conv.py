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
# XLA's products on CPU (with AVX-512) sum 64 columns at once over one row of inputs after the other, as PyTorch's
# convolutions do, and fewer columns in two or four parts.
_COLUMNS_AT_ONCE = 64
_COLUMNS_TO_FILL = 8  # a network's widths; the RPN's 3 and 12 would take twice the time


class Window(NamedTuple):
    """The movement of a kernel over an image: the same along both axes, with zero padding."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


def conv2d(
    x: Float[Array, "B H W I"], kernel: Float[Array, "K K J O"], window: Window, groups: int = 1
) -> Float[Array, "B H2 W2 O"]:
    """Cross-correlation of `x` with `kernel`, as `torch.nn.functional.conv2d`; the result has the type of `x`.

    A kernel of one cell is a product on CPU, and so are both its gradients everywhere. The gradient of a larger kernel
    is on CPU a product with patches, in a quarter to two thirds of the time of XLA's convolution for it.
    """
    one_cell = kernel.shape[0] == kernel.shape[1] == 1 and window.padding == 0
    if groups > 1 or (window.stride > 1 and not one_cell):
        return _xla(x, kernel, window, groups)
    # Inside `jax.shard_map` the kernel then varies over the mesh as the image does, and so may its gradient.
    return (_conv_of_one_cell if one_cell else _conv)(window, x, kernel + zero_of(x).astype(kernel.dtype))


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
def _conv_of_one_cell(window: Window, x: Array, kernel: Array) -> Array:
    elsewhere = partial(_xla, window=window)
    return lax.platform_dependent(x, kernel, cpu=partial(_product, window.stride), default=elsewhere)


def _product(stride: int, x: Array, kernel: Array) -> Array:
    x = x[:, ::stride, ::stride]
    inputs, outputs = kernel.shape[2:]
    fills = outputs < _COLUMNS_AT_ONCE and outputs % _COLUMNS_TO_FILL == 0
    filled = _COLUMNS_AT_ONCE if fills else outputs
    columns = jnp.pad(kernel[0, 0], ((0, 0), (0, filled - outputs)))
    return (x.reshape(-1, inputs) @ columns)[:, :outputs].reshape(*x.shape[:3], outputs)


def _conv_of_one_cell_fwd(window: Window, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv_of_one_cell(window, x, kernel), (x, kernel)


def _conv_of_one_cell_bwd(
    window: Window, residuals: tuple[Array, Array], gradient: Float[Array, "B H2 W2 O"]
) -> tuple[Array, Array]:
    """Products of two axes: those of four have transposed copies."""
    x, kernel = residuals
    stride = window.stride
    of_x = _product(1, gradient, kernel.swapaxes(2, 3))
    skipped = [(0, (size - 1) % stride, stride - 1) for size in x.shape[1:3]]
    of_x = lax.pad(of_x, jnp.zeros((), of_x.dtype), [(0, 0, 0), *skipped, (0, 0, 0)])
    of_kernel = x[:, ::stride, ::stride].reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])
    return of_x, of_kernel[None, None]


_conv_of_one_cell.defvjp(_conv_of_one_cell_fwd, _conv_of_one_cell_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(window: Window, x: Array, kernel: Array) -> Array:
    return _xla(x, kernel, window)


def _conv_fwd(window: Window, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _xla(x, kernel, window), (x, kernel)


def _conv_bwd(window: Window, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    side = kernel.shape[0]
    # Behind a barrier, or XLA's convolution turns the kernel itself, which on CPU takes four times as long.
    turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    around = window._replace(padding=window.dilation * (side - 1) - window.padding)
    _, by_kernel = jax.vjp(lambda kernel: _xla(x, kernel, window), kernel)
    on_cpu = partial(kernel_gradient, side, window)
    of_kernel = lax.platform_dependent(x, gradient, cpu=on_cpu, default=lambda _, gradient: by_kernel(gradient)[0])
    return _xla(gradient, turned, around), of_kernel


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
