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


class Window(NamedTuple):
    """How a kernel moves over an image: the same along both axes, with a border of zeros."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


def conv2d(
    x: Float[Array, "B H W I"], kernel: Float[Array, "K K J O"], window: Window, groups: int = 1
) -> Float[Array, "B H2 W2 O"]:
    """Cross-correlation of `x` with `kernel`, as `torch.nn.functional.conv2d`; the result has the type of `x`.

    A kernel of one cell is a product over channels. The gradient of other kernels is on CPU a sum of products of the
    gradient with the shifted image, which XLA's own convolution takes more than twice the time for.
    """
    if kernel.shape[0] == kernel.shape[1] == 1 and window.padding == 0 and groups == 1:
        return x[:, :: window.stride, :: window.stride] @ kernel[0, 0]
    if groups > 1:
        return _xla(x, kernel, window, groups)
    return _conv(window, x, kernel)


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
    _, of_x = jax.vjp(lambda x: _xla(x, kernel, window), x)
    _, of_kernel = jax.vjp(lambda kernel: _xla(x, kernel, window), kernel)
    shifted = partial(shifted_products, kernel.shape[0], window)
    kernel_gradient = lax.platform_dependent(x, gradient, cpu=shifted, default=lambda _, g: of_kernel(g)[0])
    return of_x(gradient)[0], kernel_gradient


_conv.defvjp(_conv_fwd, _conv_bwd)


def shifted_products(
    side: int, window: Window, x: Float[Array, "B H W I"], gradient: Float[Array, "B H2 W2 O"]
) -> Float[Array, "K K I O"]:
    """The kernel's gradient, cell by cell: the image as that cell saw it, times the gradient."""
    padded = jnp.pad(x, ((0, 0), *[(window.padding, window.padding)] * 2, (0, 0)))
    _, height, width, _ = gradient.shape
    cells = []
    for row, column in itertools.product(range(side), range(side)):
        top, left = row * window.dilation, column * window.dilation
        bottom, right = top + window.stride * height, left + window.stride * width
        seen = padded[:, top : bottom : window.stride, left : right : window.stride]
        cells.append(jnp.einsum("bhwi,bhwo->io", seen, gradient))
    return jnp.stack(cells).reshape(side, side, x.shape[-1], gradient.shape[-1])
