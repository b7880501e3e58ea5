"""Resizing inside a program gives the sizes and pixels of `data.transforms`, which are Pillow's and torchvision's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.data.augment import transforms
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.program import ExportSettings
from mask_rcnn_jax.export.resize import Preprocessing, largest_exact_side, preprocess, resized_sizes

CONVENTIONS = ("detectron2", "torchvision")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_sizes_are_those_of_the_data_layer(convention):
    settings = Preprocessing(800, 1333, (1344, 1344), convention)
    rng = np.random.default_rng(0)
    # 960 x 963 and the like, whose resized sides are halves that only float64 rounds as Python does.
    sizes = np.concatenate([rng.integers(1, 4000, (5000, 2)), [(960, 963 + 6 * i) for i in range(100)]]).astype(
        np.int32
    )
    expected = [transforms.resized_size(int(h), int(w), 800, 1333, convention) for h, w in sizes]
    np.testing.assert_array_equal(jax.jit(lambda sizes: resized_sizes(settings, sizes))(sizes), expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_the_canvas_does_not_hold_is_made_smaller(convention):
    settings = Preprocessing(64, 96, (64, 96), convention)
    sizes = np.array([(100, 50), (70, 70), (1, 300), (300, 1), (96, 64)], np.int32)
    resized = np.asarray(resized_sizes(settings, jnp.asarray(sizes)))
    assert (resized <= (64, 96)).all()
    assert (resized >= 1).all()
    np.testing.assert_array_equal(resized[[0, 4]], [(64, 32), (64, 43)])


@pytest.mark.parametrize(("convention", "bound"), [("detectron2", 0), ("torchvision", 4e-5)])
def test_pixels_are_those_of_the_data_layer(convention, bound):
    """Larger, smaller, as they are, and single rows: Pillow's to the bit, torchvision's to float32's rounding."""
    settings = Preprocessing(60, 110, (64, 128), convention)
    sizes = np.array(
        [(30, 40), (60, 110), (61, 97), (120, 150), (1, 1), (1, 90), (113, 150), (120, 50), (120, 1)], np.int32
    )
    rng = np.random.default_rng(1)
    images = np.zeros((len(sizes), 120, 150, 3), np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    pixels, resized = jax.jit(lambda *inputs: preprocess(settings, *inputs))(images, sizes)
    for image, size, found, to in zip(images, sizes, np.asarray(pixels), np.asarray(resized), strict=True):
        expected = transforms.resize(image[: size[0], : size[1]], tuple(map(int, to)), convention)
        assert np.abs(found[: to[0], : to[1]] - expected.astype(np.float32)).max() <= bound
        assert not found[to[0] :].any()
        assert not found[:, to[1] :].any()


@pytest.mark.parametrize("shape", [(20_000, 8), (8, 20_000)])
@pytest.mark.parametrize(("convention", "bound"), [("detectron2", 0), ("torchvision", 4e-5)])
def test_large_reductions_are_exact(shape, convention, bound):
    """20,000 pixels to 256: 157 cells a pixel, and products of two sides that int32 does not hold."""
    settings = Preprocessing(256, 256, (256, 256), convention)
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    pixels, resized = jax.jit(lambda *inputs: preprocess(settings, *inputs))(image[None], np.array([shape], np.int32))
    height, width = map(int, np.asarray(resized)[0])
    assert sorted((height, width)) == [1, 256]
    expected = transforms.resize(image, (height, width), convention).astype(np.float32)
    assert np.abs(np.asarray(pixels)[0, :height, :width] - expected).max() <= bound


def test_the_largest_exact_reduction():
    """White, and coefficients whose lower bits are all ones, are the largest sums that there can be."""
    settings = Preprocessing(32, 32, (32, 32))
    side = largest_exact_side(settings)
    assert side == 1042 * 32 // 3
    image = np.full((side, 16, 3), 255, np.uint8)
    image[::7] = np.random.default_rng(3).integers(0, 256, image[::7].shape)
    pixels, resized = jax.jit(lambda *inputs: preprocess(settings, *inputs))(
        image[None], np.array([image.shape[:2]], np.int32)
    )
    height, width = map(int, np.asarray(resized)[0])
    np.testing.assert_array_equal(
        np.asarray(pixels)[0, :height, :width], transforms.resize(image, (height, width), "detectron2")
    )


def test_an_input_that_cannot_be_resized_exactly_is_refused():
    settings = Preprocessing(256, 256, (256, 256))
    ExportSettings((88_000, 8), settings)
    ExportSettings((10**6, 8), replace(settings, convention="torchvision"))
    with pytest.raises(UserError, match=r"--input 8 90000: .* above 88917 pixels .* smaller --input or a larger"):
        ExportSettings((8, 90_000), settings)
