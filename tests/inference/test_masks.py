"""Windowed encoding against pasting on the whole image and pycocotools' encoder."""

import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.inference import encode_masks
from mask_rcnn_jax.ops import PasteConvention, paste_masks
from mask_rcnn_jax.rle import RLE

HEIGHT, WIDTH = 90, 150


def encoded(boxes: list[list[float]], masks: np.ndarray, *convention: PasteConvention) -> list[RLE]:
    return encode_masks(np.array(boxes, np.float32).reshape(-1, 4), masks, (HEIGHT, WIDTH), *convention)


def smooth_masks(count: int, side: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    at = np.linspace(-1, 1, side)
    radius = at[:, None] ** 2 + at**2
    return (1 / (1 + np.exp(6 * (radius - 0.7 + rng.normal(0, 0.2, (count, side, side)))))).astype(np.float32)


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_equals_pasting_on_the_whole_image(convention) -> None:
    rng = np.random.default_rng(1)
    centers, sides = rng.uniform(0, [WIDTH, HEIGHT], (40, 2)), rng.uniform(1, 140, (40, 2))
    corners = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    boxes = np.clip(corners, 0, [WIDTH, HEIGHT] * 2).tolist()
    boxes += [
        [0, 0, WIDTH, HEIGHT],
        [10.5, 0, 30.5, HEIGHT],
        [5, 5, 5, 5],
        [WIDTH - 3.2, 0, WIDTH, 2.1],
        [20, 4, 84, 68],
    ]
    masks = smooth_masks(len(boxes), 14)
    masks[-4:] = 1  # full height: runs that go on from column to column
    rles = encoded(boxes, masks, convention)
    pasted = np.asarray(paste_masks(jnp.array(masks), jnp.array(boxes), (HEIGHT, WIDTH), convention))
    assert pasted.any(axis=(1, 2)).sum() > 40
    for rle, bitmap in zip(rles, pasted, strict=True):
        assert rle["size"] == [HEIGHT, WIDTH]
        # The window shifts coordinates, which rounds probabilities that are .5 up to the last bit differently.
        assert (coco_mask.decode(rle) != bitmap).sum() <= 2


def test_encodes_as_pycocotools_does() -> None:
    boxes = [[0, 0, WIDTH, HEIGHT], [3, -HEIGHT, 9, 2 * HEIGHT], [0, 7, 1, 8], [100, 80, WIDTH, HEIGHT], [4, 4, 4, 9]]
    for rle in encoded(boxes, np.ones((len(boxes), 4, 4), np.float32)):
        assert rle["counts"] == coco_mask.encode(coco_mask.decode(rle))["counts"].decode()


def test_order_of_detections_is_kept_across_canvas_sizes() -> None:
    boxes = [[0.0, 0, 140, 80], [1.0, 1, 4, 4], [0.0, 0, 100, 30], [8.0, 8, 12, 12]]
    areas = coco_mask.area(encoded(boxes, np.ones((4, 28, 28), np.float32)))
    # Interpolation towards the zeros outside rounds the corners off.
    np.testing.assert_allclose(areas, [140 * 80, 9, 3000, 16], rtol=0.01)


def test_no_detections() -> None:
    assert encoded([], np.zeros((0, 28, 28), np.float32)) == []
