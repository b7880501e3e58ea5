"""Attention, windows and positions against loops, and against PyTorch's interpolation."""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models.layers.attention import (
    absolute_positions,
    attend,
    cubic_weights,
    join_windows,
    linear_weights,
    relative_positions,
    split_windows,
)


def test_attention_is_its_formula_token_by_token():
    rng = np.random.default_rng(0)
    batch, height, width, heads, channels = 2, 2, 3, 2, 4
    q, k, v = rng.normal(size=(3, batch, height, width, heads, channels)).astype(np.float32)
    rows, columns = (rng.normal(size=(side, side, channels)).astype(np.float32) for side in (height, width))
    found = np.asarray(jax.jit(attend)(q, k, v, rows, columns))
    places = list(np.ndindex(height, width))
    for image, (y, x), head in ((image, place, head) for image in (0, 1) for place in places for head in (0, 1)):
        query = q[image, y, x, head].astype(np.float64)
        logits = [
            query @ k[image, u, w, head] / np.sqrt(channels) + query @ rows[y, u] + query @ columns[x, w]
            for u, w in places
        ]
        weights = np.exp(logits) / np.exp(logits).sum()
        expected = sum(weight * v[image, u, w, head] for weight, (u, w) in zip(weights, places, strict=True))
        np.testing.assert_allclose(found[image, y, x, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 4), (9, 5), (3, 2), (1, 4)])
def test_windows_are_cut_and_joined_again(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    windows = np.asarray(split_windows(jnp.asarray(x), 4))
    rows, columns = (-(-side // 4) for side in size)
    assert windows.shape == (2 * rows * columns, 4, 4, 3)
    for number, (image, row, column) in enumerate(np.ndindex(2, rows, columns)):
        inside = x[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = np.zeros((4, 4, 3), np.float32)
        expected[: inside.shape[0], : inside.shape[1]] = inside
        np.testing.assert_array_equal(windows[number], expected)
    np.testing.assert_array_equal(join_windows(jnp.asarray(windows), size), x)


def test_relative_positions_are_rows_of_the_table_by_distance():
    table = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    found = np.asarray(relative_positions(jnp.asarray(table), 5))
    for i, j in np.ndindex(5, 5):
        np.testing.assert_array_equal(found[i, j], table[i - j + 4])
    resized = linear_weights(9, 5) @ table
    found = np.asarray(relative_positions(jnp.asarray(table), 3))
    for i, j in np.ndindex(3, 3):
        np.testing.assert_allclose(found[i, j], resized[i - j + 2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("length", "size"), [(13, 13), (13, 31), (31, 13), (5, 1)])
def test_tables_are_interpolated_as_pytorch_does(torchvision: ModuleType, length, size):
    import torch

    table = np.random.default_rng(0).normal(size=(length, 4))
    expected = torch.nn.functional.interpolate(torch.from_numpy(table.T[None]), size=size, mode="linear")[0].T
    np.testing.assert_allclose(linear_weights(length, size) @ table, expected, rtol=1e-9, atol=1e-9)
    row = torch.from_numpy(table.T[None, :, None])
    expected = torch.nn.functional.interpolate(row, size=(1, size), mode="bicubic")[0, :, 0].T
    np.testing.assert_allclose(cubic_weights(length, size) @ table, expected, rtol=1e-9, atol=1e-9)


def test_positions_of_a_map_of_the_tables_size_are_the_table():
    table = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(absolute_positions(jnp.asarray(table), (4, 4)), table)
    # Of a map of another height alone, columns stay apart.
    taller = np.asarray(absolute_positions(jnp.asarray(table), (7, 4)))
    np.testing.assert_allclose(taller, np.einsum("yg,gxc->yxc", cubic_weights(4, 7), table), rtol=1e-5, atol=1e-6)
