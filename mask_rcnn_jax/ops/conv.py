"""Convolution of images, whose gradients take the form that is fast where they run.

Shape letters: `B` images, `H W` height and width, `I O` channels in and out, `J` of a group, `K` side of a kernel.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mask_rcnn_jax.ops.cpu.conv import Window, kernel_gradient, product_with_cells
from mask_rcnn_jax.ops.loops import zero_of


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
    return lax.platform_dependent(x, kernel, cpu=partial(product_with_cells, window.stride), default=elsewhere)


def _conv_of_one_cell_fwd(window: Window, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv_of_one_cell(window, x, kernel), (x, kernel)


def _conv_of_one_cell_bwd(
    window: Window, residuals: tuple[Array, Array], gradient: Float[Array, "B H2 W2 O"]
) -> tuple[Array, Array]:
    """Products of two axes: those of four have transposed copies."""
    x, kernel = residuals
    stride = window.stride
    of_x = product_with_cells(1, gradient, kernel.swapaxes(2, 3))
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
