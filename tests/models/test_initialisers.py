"""Initial weights: the bits of jax's own initialisers, from few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models.layers.initialisers import _draw, msra_init, normal_init, torch_init, xavier_init

SHAPES = [(1, 1), (3, 5), (1024, 91), (1, 1, 17, 33), (3, 3, 16, 16), (7, 7, 3, 64), (2, 2, 40, 8)]
PEERS = {
    "msra": (msra_init, nnx.initializers.variance_scaling(2.0, "fan_out", "normal")),
    "xavier": (xavier_init, nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")),
    "torch": (torch_init, nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")),
    "normal": (normal_init(0.01), nnx.initializers.normal(0.01)),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_numbers_are_those_of_jax(name: str) -> None:
    ours, peer = PEERS[name]
    for seed, shape in enumerate(SHAPES):
        expected = jax.jit(peer, static_argnums=(1, 2))(jax.random.key(seed), shape, jnp.float32)
        found = ours(jax.random.key(seed), shape, jnp.float32)
        assert found.shape == shape
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), strict=True)


def test_shapes_of_similar_size_share_a_program() -> None:
    msra_init(jax.random.key(0), (3, 3, 30, 50))  # 13,500 numbers of 4^7
    programs = _draw._cache_size()
    for shape in ((3, 3, 20, 30), (1, 1, 100, 100), (128, 128)):
        msra_init(jax.random.key(0), shape)
    assert _draw._cache_size() == programs


def test_networks_can_be_laid_out_without_numbers() -> None:
    shaped = jax.eval_shape(lambda: xavier_init(jax.random.key(0), (3, 4), jnp.float32))
    assert (shaped.shape, shaped.dtype) == ((3, 4), jnp.float32)
