"""Warped crops beside loops of NumPy, and where they are copies of pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import WarpConfig
from mask_rcnn_jax.ops.pooling.warp import warp


def crop(images, rois, side, context):
    return _crop(jnp.asarray(images), jnp.asarray(rois), side, context)


_crop = jax.jit(warp, static_argnums=(2, 3))


def by_loops(image, roi, side, context):
    """One crop in float64: pixels of the image are looked up one by one, and are 0 beyond it."""
    x1, y1, x2, y2 = roi.astype(np.float64)
    inner = side - 2 * context
    out = np.zeros((side, side, image.shape[2]))
    for i, j in np.ndindex(side, side):
        # The crop's pixel (i, j) lies so many inner sides from the RoI's corner; pixels have their centre at .5.
        y = y1 + (i + 0.5 - context) / inner * (y2 - y1) - 0.5
        x = x1 + (j + 0.5 - context) / inner * (x2 - x1) - 0.5
        for row, column in np.ndindex(2, 2):
            cell_y, cell_x = int(np.floor(y)) + row, int(np.floor(x)) + column
            if 0 <= cell_y < image.shape[0] and 0 <= cell_x < image.shape[1]:
                out[i, j] += (1 - abs(y - cell_y)) * (1 - abs(x - cell_x)) * image[cell_y, cell_x]
    return out


def scene():
    """Two images, RoIs of all shapes in them, some at the edges, one as large as the image, and a padded one."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 20, 30, 3)).astype(np.float32)
    corners = rng.uniform(0, [30, 20], (2, 6, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], axis=-1).astype(np.float32)
    rois[:, 0], rois[:, 1], rois[:, 2] = [0, 0, 30, 20], [0, 18, 3, 20], 0
    return images, rois


@pytest.mark.parametrize(("side", "context"), [(12, 2), (9, 0)])
def test_crops_are_those_of_loops(side, context):
    images, rois = scene()
    crops = np.asarray(crop(images, rois, side, context))
    for image, r in np.ndindex(2, 6):
        np.testing.assert_allclose(crops[image, r], by_loops(images[image], rois[image, r], side, context), atol=1e-5)
    assert np.isfinite(crops).all()


def test_a_roi_of_the_inner_side_is_copied_with_its_surroundings():
    """And what is beyond the image is 0, whether there is padding or not."""
    images = scene()[0]
    rois = np.tile(np.array([[4.0, 1, 12, 9], [22, 12, 30, 20]], np.float32), (2, 1, 1))
    crops = crop(images, rois, 12, 2)
    around = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    # Coordinates are rounded.
    np.testing.assert_allclose(crops[:, 0], around[:, 1:13, 4:16], atol=1e-5)
    np.testing.assert_allclose(crops[:, 1], around[:, 12:24, 22:34], atol=1e-5)
    np.testing.assert_allclose(crop(around[:, 2:], rois + np.float32([2, 0, 2, 0]), 12, 2), crops, atol=1e-5)


def test_the_pooler_crops_images_as_they_are():
    images, rois = scene()
    config = WarpConfig(output_size=12, context=2)
    pooled = jax.jit(lambda image, rois: config.pool({"image": image}, {"image": 2}, rois))(images, 2 * rois)
    np.testing.assert_allclose(pooled, crop(images, rois, 12, 2), atol=1e-5)
    with pytest.raises(ValueError, match="a RoI is cut out of one feature, not of p2, p3"):
        WarpConfig(features=("p2", "p3"))
    with pytest.raises(ValueError, match="context 16 on both sides leaves nothing of output_size 32"):
        WarpConfig(output_size=32)
