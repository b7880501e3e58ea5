import numpy as np
import pytest

from mask_rcnn_jax.ops import cell_anchors, grid_anchors


def test_cell_anchors_golden():
    # detectron2.modeling.anchor_generator: size 32, ratios .5, 1, 2.
    expected = [
        [-22.6274, -11.3137, 22.6274, 11.3137],
        [-16.0, -16.0, 16.0, 16.0],
        [-11.3137, -22.6274, 11.3137, 22.6274],
    ]
    np.testing.assert_allclose(cell_anchors((32,), (0.5, 1.0, 2.0)), expected, atol=1e-4)


def test_rounded_cell_anchors_golden():
    # torchvision.models.detection.anchor_utils: size 32, ratios .5, 1, 2.
    expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    np.testing.assert_array_equal(cell_anchors((32,), (0.5, 1.0, 2.0), rounded=True), expected)


def test_sizes_vary_slower_than_ratios():
    anchors = cell_anchors((16, 64), (0.5, 2.0))
    sides = anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(sides.prod(1), [256, 256, 4096, 4096], rtol=1e-5)
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], [0.5, 2, 0.5, 2], rtol=1e-5)


@pytest.mark.parametrize("stride", [(8, 8), (7, 9)])
def test_grid_anchors_order_is_row_column_anchor(stride):
    cell = cell_anchors((32,), (0.5, 1.0))
    expected = [
        anchor + np.array([x * stride[1], y * stride[0]] * 2) for y in range(3) for x in range(5) for anchor in cell
    ]
    np.testing.assert_allclose(grid_anchors((3, 5), stride, cell), expected, atol=1e-5)
