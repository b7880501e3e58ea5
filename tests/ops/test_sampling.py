import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.ops import sample
from mask_rcnn_jax.ops.gpu import top_k as for_gpu
from mask_rcnn_jax.ops.sampling import top_k


def sample_by_sorting(labels, priority, num, fraction):
    order = sorted(range(len(labels)), key=lambda row: (-priority[row], row))
    foreground = [row for row in order if labels[row] == 1][: int(num * fraction)]
    background = [row for row in order if labels[row] == 0][: num - len(foreground)]
    return foreground, background


@pytest.mark.parametrize("num", [4, 16, 50])
@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.0, 1.0, 0.0), (0.9, 0.1, 0.0), (0.05, 0.5, 0.45), (0, 0, 1)])
def test_agrees_with_sorting(num, shares):
    rng = np.random.default_rng(0)
    labels = rng.choice([1, 0, -1], 40, p=shares)
    priority = rng.uniform(0, 1, 40).round(1).astype(np.float32)  # rounded, so that ties occur
    samples = sample(jnp.array(labels), jnp.array(priority), num, 0.25)
    foreground, background = sample_by_sorting(labels, priority, num, 0.25)
    drawn = len(foreground) + len(background)
    np.testing.assert_array_equal(samples.indices, foreground + background + [0] * (num - drawn))
    np.testing.assert_array_equal(samples.valid, np.arange(num) < drawn)
    np.testing.assert_array_equal(samples.foreground, np.arange(num) < len(foreground))


def test_rows_never_drawn_change_nothing():
    rng = np.random.default_rng(1)
    labels, priority = jnp.array(rng.choice([1, 0], 20)), jnp.array(rng.uniform(0, 1, 20), jnp.float32)
    plain = sample(labels, priority, 8, 0.5)
    padded = sample(jnp.pad(labels, (0, 5), constant_values=-1), jnp.pad(priority, (0, 5), constant_values=2), 8, 0.5)
    jax.tree.map(np.testing.assert_array_equal, plain, padded)


def test_uniform_priorities_draw_uniformly():
    labels = jnp.ones(8, jnp.int32)

    def draw(key):
        samples = sample(labels, jax.random.uniform(key, (8,)), 4, 0.5)
        return jnp.zeros(8).at[samples.indices].add(samples.valid)

    share = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)).mean(0)
    np.testing.assert_allclose(share, 0.25, atol=0.03)


SPECIAL = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e-45, 3e38], np.float32)


def highest_by_bits(values, num):
    """Rows by descending value, where NaN is above infinity, -NaN below the opposite, -0 below 0; then by row."""
    bits = values.view(np.int32).astype(np.int64)
    order = np.where(bits >= 0, bits, -(2**31) - 1 - bits)
    return np.lexsort([np.arange(len(values)), -order])[:num]


@pytest.mark.parametrize(("number", "num"), [(5, 5), (9, 3), (100, 13), (257, 4)])
def test_the_highest_are_found_chunk_by_chunk(number, num, monkeypatch):
    monkeypatch.setattr(for_gpu, "_CHUNK", 8)  # up to five rounds
    rng = np.random.default_rng(number)
    for share in (0.0, 0.5, 1.0):
        values = rng.integers(-3, 4, number).astype(np.float32)  # many are equal
        values = np.where(rng.uniform(0, 1, number) < share, rng.choice(SPECIAL, number), values)
        expected = highest_by_bits(values, num)
        for form in (for_gpu.top_k, top_k):
            found, rows = form(jnp.array(values), num)
            np.testing.assert_array_equal(rows, expected)
            np.testing.assert_array_equal(found, values[expected])


def test_chunks_of_several_images_are_those_of_each():
    values = jnp.array(np.random.default_rng(0).integers(0, 50, (2, 3000)), jnp.float32)
    found = jax.jit(jax.vmap(lambda values: for_gpu.top_k(values, 40)))(values)
    jax.tree.map(np.testing.assert_array_equal, found, tuple(jax.lax.top_k(values, 40)))
