"""Layers that the networks share, and how networks are applied to RoIs.

Shape letters: `B` images or RoIs, `H W` height and width, `I O` channels in and out.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from mask_rcnn_jax.models.layers.initialisers import msra_init
from mask_rcnn_jax.models.layers.norms import BatchNorm, NormConfig
from mask_rcnn_jax.ops.conv import Window, conv2d
from mask_rcnn_jax.ops.loops import zero_of

IN_TURN = "rois_in_turn"  # the name of the choice of a form in `over_rois`, whose first is that of a CPU
_CELLS_AT_ONCE = 8 * 14 * 14  # of RoIs; with 16 and 32 RoIs of 14 x 14 a training step takes 4 and 14 % longer


class Conv(nnx.Module):
    """A convolution by `ops.conv.conv2d`; `shape` is the kernel's, [K, K, I / groups, O]."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        window: Window,
        groups: int,
        *,
        use_bias: bool,
        init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        self.window, self.groups = window, groups
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), shape[-1:], jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        x = conv2d(x, self.kernel[...].astype(x.dtype), self.window, self.groups)
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)


@dataclass(frozen=True)
class Kernel:
    """A square kernel and its movement over an image with Detectron2's padding, which is half of the kernel."""

    side: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1  # of channels

    @property
    def window(self) -> Window:
        return Window(self.stride, self.dilation * (self.side // 2), self.dilation)


class ConvNorm(nnx.Module):
    """A convolution, then a norm or a bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        norm: NormConfig,
        rngs: nnx.Rngs,
        init: nnx.Initializer = msra_init,
    ):
        self.conv = Conv(
            (kernel.side, kernel.side, in_channels // kernel.groups, out_channels),
            kernel.window,
            kernel.groups,
            use_bias=norm.kind == "none",
            init=init,
            rngs=rngs,
        )
        self.norm = norm.build(out_channels, rngs)

    def __call__(self, x: Float[Array, "B H W I"], counted: Bool[Array, " B"] | None = None) -> Float[Array, "B _ _ O"]:
        """`counted` rows make the statistics of a batch norm; padding among RoIs must not."""
        x = self.conv(x)
        if isinstance(self.norm, BatchNorm):
            return self.norm(x, counted)
        return x if self.norm is None else self.norm(x)


def over_rois(
    network: nnx.Module,
    function: Callable[..., Float[Array, "N *out"]],
    valid: Bool[Array, "B R"],
    *operands: Shaped[Array, "B R *_"],
) -> Float[Array, "B R *out"]:
    """`function`, a part of `network`, of all RoIs of all images; the first operand is their features.

    Where they do not depend on each other, it works on CPU on some of an image's RoIs at a time and leaves out those
    without a valid one, which get zeros: there are slots for more foreground RoIs and detections than most images have.
    """
    batch, rois, height, width = operands[0].shape[:4]

    def at_once(valid: Array, *operands: Array) -> Array:
        result = function(*(x.reshape(batch * rois, *x.shape[2:]) for x in operands))
        return result.reshape(batch, rois, *result.shape[1:])

    def in_turn(valid: Array, *operands: Array) -> Array:
        count = max(1, -(-rois * height * width // _CELLS_AT_ONCE))
        size = -(-rois // count)
        chunks = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, count * size - rois), *[(0, 0)] * (x.ndim - 2))).reshape(
                batch * count, size, *x.shape[2:]
            ),
            (valid, operands),
        )
        result = jax.eval_shape(function, *(x[0] for x in chunks[1]))

        def one(chunk: tuple[Array, tuple[Array, ...]]) -> Array:
            valid, operands = chunk
            zero = zero_of(valid, *operands).astype(result.dtype)
            return jax.lax.cond(jnp.any(valid), function, lambda *_: jnp.full(result.shape, zero), *operands)

        return jax.lax.map(one, chunks).reshape(batch, count * size, *result.shape[1:])[:, :rois]

    if any(isinstance(part, BatchNorm) and part.observes for _, part in nnx.iter_modules(network)):
        return at_once(valid, *operands)
    with jax.named_scope(IN_TURN):
        return jax.lax.platform_dependent(valid, *operands, cpu=in_turn, default=at_once)


def call(network: nnx.Module, *inputs: Any) -> Any:
    """`network(*inputs)`; one that is `recomputed` keeps its inputs alone and is computed again for its gradient."""
    if not getattr(network, "recomputed", False):
        return network(*inputs)
    return nnx.remat(type(network).__call__)(network, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "B H W I"], side: Literal[2, 3] = 3) -> Float[Array, "B H2 W2 I"]:
    """The largest of 3x3 values at a stride of 2, with a border of one, of values that are not negative; or of 2x2
    without, of any.

    The gradient goes to the first of equal maxima, as PyTorch's does, but as a sum of shifted arrays: XLA's own is a
    scatter, which a GPU adds up in any order.
    """
    return nnx.max_pool(_with_border(x, side), (side, side), strides=(2, 2), padding="VALID")


def _with_border(x: Float[Array, "B H W I"], side: int) -> Float[Array, "B _ _ I"]:
    # No maximum is below zero, so zeros may stand for minus infinity.
    border = (side - 2, side - 2)
    return jnp.pad(x, ((0, 0), border, border, (0, 0)))


def _max_pool_fwd(x: Array, side: Literal[2, 3]) -> tuple[Array, tuple[Array, Array]]:
    highest = jnp.asarray(max_pool(x, side))
    return highest, (x, highest)


def _max_pool_bwd(
    side: int, residuals: tuple[Array, Array], gradient: Float[Array, "B H2 W2 I"]
) -> tuple[Float[Array, "B H W I"]]:
    x, highest = residuals
    wide = _with_border(x, side)
    (_, height, width, _), (_, rows, columns, _) = wide.shape, highest.shape
    total, missing = jnp.zeros_like(wide), jnp.ones_like(highest, bool)
    for top, left in itertools.product(range(side), range(side)):
        bottom, right = top + 2 * rows - 1, left + 2 * columns - 1
        first = missing & (wide[:, top:bottom:2, left:right:2] == highest)
        missing &= ~first
        places = ((0, 0, 0), (top, height - bottom, 1), (left, width - right, 1), (0, 0, 0))
        total += jax.lax.pad(jnp.where(first, gradient, 0), jnp.zeros((), gradient.dtype), places)
    border = side - 2
    return (total[:, border : height - border, border : width - border],)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


class Deconv2x2(nnx.Module):
    """A 2x2 transposed convolution with stride 2: one product, as its windows do not overlap."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs, init: nnx.Initializer = msra_init):
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, in_channels, out_channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B 2*H 2*W O"]:
        batch, height, width, _ = x.shape
        x = jnp.einsum("bhwi,yxio->bhywxo", x, self.kernel[...].astype(x.dtype))
        return x.reshape(batch, 2 * height, 2 * width, -1) + self.bias[...].astype(x.dtype)
