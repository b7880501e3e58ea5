import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.ops import sample


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
