"""Convolutions and their gradients against XLA's own."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mask_rcnn_jax.ops.conv import Window, conv2d
from mask_rcnn_jax.ops.cpu.conv import kernel_gradient


def xla(x, kernel, window, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (window.stride,) * 2,
        [(window.padding,) * 2] * 2,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def operands(side, window, groups, height=9, width=12):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(side, side, 8 // groups, 4)), jnp.float32)
    expected = xla(x, kernel, window, groups)
    return x, kernel, expected, jnp.asarray(rng.normal(size=expected.shape), jnp.float32)


CASES = [
    (1, Window(), 1),
    (1, Window(stride=2), 1),
    (3, Window(padding=1), 1),
    (3, Window(stride=2, padding=1), 1),
    (3, Window(padding=2, dilation=2), 1),
    (3, Window(padding=1), 2),
    (7, Window(stride=2, padding=3), 1),
]


@pytest.mark.parametrize(("side", "window", "groups"), CASES)
def test_convolution_and_gradients_are_xlas(side, window, groups):
    x, kernel, expected, gradient = operands(side, window, groups)
    ours, vjp = jax.vjp(partial(conv2d, window=window, groups=groups), x, kernel)
    _, their_vjp = jax.vjp(lambda x, kernel: xla(x, kernel, window, groups), x, kernel)
    for a, b in zip((ours, *vjp(gradient)), (expected, *their_vjp(gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [50, 512])
@pytest.mark.parametrize(("side", "window", "groups"), [case for case in CASES if case[1].stride == case[2] == 1])
def test_the_form_for_cpu_is_the_kernels_gradient(side, window, groups, chunk, monkeypatch):
    monkeypatch.setattr("mask_rcnn_jax.ops.cpu.conv._CHUNK", chunk)
    x, kernel, _, gradient = operands(side, window, groups)
    _, vjp = jax.vjp(lambda kernel: xla(x, kernel, window, 1), kernel)
    with jax.default_matmul_precision("highest"):
        found = kernel_gradient(side, window, x, gradient)
    np.testing.assert_allclose(found, *vjp(gradient), rtol=1e-5, atol=1e-4)


def test_the_result_has_the_images_type():
    x, kernel, _, _ = operands(3, Window(padding=1), 1)
    assert conv2d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), Window(padding=1)).dtype == jnp.bfloat16


def avx512() -> bool:
    info = Path("/proc/cpuinfo")
    return jax.default_backend() == "cpu" and info.exists() and "avx512f" in info.read_text()


@pytest.mark.skipif(not avx512(), reason="products have other widths without AVX-512")
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 32), (32, 8), (8, 8), (64, 40), (8, 64), (128, 128)])
def test_a_kernel_of_one_cell_sums_its_inputs_one_after_the_other(inputs, outputs):
    # As PyTorch's convolution on CPU: a recorded network's scores hang on it.
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 9, 12, inputs), (1, 1, inputs, outputs)))
    expected = np.zeros((2, 5, 6, outputs), np.float32)
    for i in range(inputs):  # each product and sum rounded once, as a fused multiply-add
        product = x[:, ::2, ::2, i, None].astype(np.float64) * kernel[0, 0, i]
        expected = (expected + product).astype(np.float32)
    np.testing.assert_array_equal(conv2d(jnp.asarray(x), jnp.asarray(kernel), Window(stride=2)), expected)
