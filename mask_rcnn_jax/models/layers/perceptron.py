"""The perceptron of a transformer's block. Shape letters: `B` images, `H W` sides of a map, `C` channels."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.models.layers.initialisers import normal_init

_init = normal_init(0.02)


class Perceptron(nnx.Module):
    """A norm and two layers, the same at every place, with `inside` channels between them."""

    def __init__(self, channels: int, inside: int, epsilon: float, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.expand = nnx.Linear(channels, inside, kernel_init=_init, rngs=rngs)
        self.contract = nnx.Linear(inside, channels, kernel_init=_init, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return self.contract(jax.nn.gelu(self.expand(self.norm(x)), approximate=False))
