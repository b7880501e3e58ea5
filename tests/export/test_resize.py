"""Resizing inside a program gives the sizes and pixels of `data.transforms`, which are Pillow's and torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.data import transforms
from mask_rcnn_jax.export.resize import Preprocessing, preprocess, resized_sizes

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
    sizes = np.array([(30, 40), (60, 110), (61, 97), (120, 150), (1, 1), (1, 90), (113, 150), (45, 80)], np.int32)
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
