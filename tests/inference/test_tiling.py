"""Tiles of scenes whose truth is known, through detectors that read it off the pixels.

In a scene, red and green hold the number of the instance that a pixel shows, and blue its class plus 1. A detector that
sees only tiles can thus be exact about what is in view, and about nothing else.
"""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.stitching import stitch
from mask_rcnn_jax.inference.tiling import TiledPredictor, TilingConfig, tile_windows

NAMES = ("round", "square", "thin")


def scene(seed: int, height: int, width: int, largest: int, count: int, rim: int = 3) -> np.ndarray:
    """Discs, rectangles and frames of sides up to `largest` pixels, later ones in front of earlier ones.

    What hides part of another leaves each piece of it an instance of its own.
    """
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    for number in range(1, count + 1):
        label = int(rng.integers(3))
        h, w = rng.integers(8, largest + 1, 2)
        top, left = rng.integers(-4, height - 4), rng.integers(-4, width - 4)
        inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        if label == 0:
            inside &= ((y - top - h / 2) / h) ** 2 + ((x - left - w / 2) / w) ** 2 < 0.25
        if label == 2:
            inside &= ~((y >= top + rim) & (y < top + h - rim) & (x >= left + rim) & (x < left + w - rim))
        image[inside] = number, 0, label + 1
    pieces = np.zeros((height, width), int)
    for number in np.unique(image[..., 0])[1:]:
        labels, _ = ndimage.label(image[..., 0] == number)
        pieces[labels > 0] = pieces.max() + labels[labels > 0]
    image[..., 0], image[..., 1] = pieces % 256, pieces // 256
    return image


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def truth(image: np.ndarray) -> Detections:
    """What the image shows, instance by instance in the order of their numbers."""
    numbers = image[..., 0].astype(int) + 256 * image[..., 1].astype(int)
    shown = [number for number in np.unique(numbers) if number]
    masks = [numbers == number for number in shown]
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Detections(
        height=image.shape[0],
        width=image.shape[1],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array([0.9 - number / 1000 for number in shown], np.float32),
        classes=np.array([image[..., 2][mask].max() - 1 for mask in masks], np.int32),
        class_names=NAMES,
        rles=tuple(encode(mask) for mask in masks),
    )


class Oracle:
    """Streams what `found` makes of each image it is shown."""

    def __init__(self, found: Callable[[np.ndarray], Detections] = truth):
        self.found, self.sizes, self.shapes = found, [], [(1, 64, 64)]

    def stream(self, images: Iterable[Any]) -> Iterator[Detections]:
        for image in images:
            self.sizes.append(image.size)
            yield self.found(np.asarray(image))


def tiled(image: np.ndarray, tile: int, overlap: int | None, found: Callable = truth) -> Detections:
    return TiledPredictor(Oracle(found), TilingConfig(tile, overlap))(image)


def as_set(found: Detections) -> set[tuple[int, str]]:
    assert found.rles is not None
    return {(int(k), rle["counts"]) for k, rle in zip(found.classes, found.rles, strict=True)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tile", "overlap", "largest"), [(96, 48, 30), (96, 24, 90), (64, 20, 250), (80, 8, 60)])
def test_an_exact_detector_stays_exact(seed, tile, overlap, largest):
    """Instances below the overlap, above it, and above a tile: each is found once, pixel by pixel."""
    image = scene(seed, 200 + 13 * seed, 300 - 7 * seed, largest, 25)
    expected, found = truth(image), tiled(image, tile, overlap)
    assert (found.height, found.width) == image.shape[:2]
    assert as_set(found) == as_set(expected)
    assert len(found) == len(expected)
    assert (np.diff(found.scores) <= 0).all()


def inexact(rng: np.random.Generator, image: np.ndarray) -> Detections:
    """The truth but for what is hardly visible, with boxes and masks a little off and scores at random.

    Where the border of the image cuts an instance, its class is guessed.
    """
    exact = truth(image)
    exact = exact.take(sizeable(exact))
    assert exact.masks is not None
    masks = [shift(mask, *rng.integers(-1, 2, 2).tolist()) for mask in exact.masks]
    sides = np.array([image.shape[1], image.shape[0]] * 2)
    cut = (exact.boxes == 0).any(axis=1) | (exact.boxes == sides).any(axis=1)
    return replace(
        exact,
        boxes=np.clip(exact.boxes + rng.uniform(-1, 1, exact.boxes.shape), 0, sides).astype(np.float32),
        scores=rng.uniform(0.1, 1, len(exact)).astype(np.float32),
        classes=np.where(cut, rng.integers(0, 3, len(exact)), exact.classes).astype(np.int32),
        rles=tuple(encode(mask) for mask in masks),
    )


def sizeable(found: Detections) -> np.ndarray:
    return (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1) >= 8


def shift(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = mask.shape
    return np.pad(mask, 1)[1 - down : 1 - down + height, 1 - right : 1 - right + width]


@pytest.mark.parametrize("seed", range(4))
def test_an_inexact_detector_finds_each_instance_once(seed):
    """What a border cuts has a guessed class; it must neither stay as a second instance nor replace the whole one."""
    image = np.zeros((310, 410, 3), np.uint8)
    image[5:-5, 5:-5] = scene(seed, 300, 400, 45, 20, rim=8)  # none is cut by the image's own border
    rng = np.random.default_rng(seed)
    found = tiled(image, 128, 64, lambda tile: inexact(rng, tile))
    expected = truth(image)
    expected = expected.take(sizeable(expected))
    assert len(found) == len(expected)
    iou = np.asarray(coco_mask.iou(as_bytes(expected), as_bytes(found), [0] * len(found)))
    assert sorted(np.argmax(iou, axis=1)) == list(range(len(found)))
    np.testing.assert_array_equal(found.classes[np.argmax(iou, axis=1)], expected.classes)


def as_bytes(found: Detections) -> Any:
    return [rle | {"counts": rle["counts"].encode()} for rle in found.rles or ()]


def test_boxes_without_masks():
    """Rectangles apart from each other, some larger than the overlap and some than a tile."""
    image = np.zeros((260, 330, 3), np.uint8)
    places = [
        (10, 12, 60, 40),
        (85, 5, 25, 25),
        (130, 20, 180, 30),
        (15, 70, 30, 170),
        (70, 80, 90, 100),
        (190, 90, 20, 9),
    ]
    for number, (x, y, w, h) in enumerate(places, 1):
        image[y : y + h, x : x + w] = number, 0, number % 3 + 1
    found = tiled(image, 80, 30, lambda tile: replace(truth(tile), rles=None))
    assert found.rles is None
    expected = {(x, y, x + w, y + h, number % 3) for number, (x, y, w, h) in enumerate(places, 1)}
    assert {(*box, k) for box, k in zip(found.boxes.tolist(), found.classes.tolist(), strict=True)} == expected
    assert len(found) == len(places)


def test_an_image_within_a_tile_is_what_the_predictor_says(tmp_path):
    image, oracle = scene(0, 60, 80, 30, 8), Oracle()
    Image.fromarray(image).save(tmp_path / "a.png")
    found = TiledPredictor(oracle, TilingConfig(96))(tmp_path / "a.png")
    assert oracle.sizes == [(80, 60)]
    assert found.path == str(tmp_path / "a.png")
    expected = truth(image)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.rles == expected.rles


def test_nothing_found():
    found = tiled(np.zeros((200, 200, 3), np.uint8), 96, 20)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.rles == ()


def part(box: tuple[float, ...], score: float, keypoints: list[tuple[float, float, float]]) -> Detections:
    """One detection in a tile of 100 x 100 pixels."""
    return Detections(
        height=100,
        width=100,
        boxes=np.array([box], np.float32),
        scores=np.array([score], np.float32),
        classes=np.zeros(1, np.int32),
        class_names=NAMES,
        rles=None,
        keypoints=np.array([keypoints], np.float32),
    )


def test_a_joined_instance_takes_what_each_part_knows_best():
    windows = np.array([[0, 0, 100, 100], [60, 0, 160, 100]])
    left = part((20, 30, 100, 60), 0.6, [(25, 40, 0.9), (99, 50, 0.1)])
    right = part((0, 31, 80, 60), 0.7, [(1, 41, 0.2), (75, 52, 0.8)])
    found = stitch(windows, [left, right], (100, 160))
    np.testing.assert_allclose(found.boxes, [[20, 30, 140, 60]])
    np.testing.assert_allclose(found.scores, [0.7])
    assert found.keypoints is not None
    np.testing.assert_allclose(found.keypoints, [[[25, 40, 0.9], [135, 52, 0.8]]])
    other = replace(right, classes=np.ones(1, np.int32))
    assert len(stitch(windows, [left, other], (100, 160))) == 2
    below = replace(right, boxes=np.array([[0, 61, 80, 90]], np.float32))
    assert len(stitch(windows, [left, below], (100, 160))) == 2


def test_memory_is_that_of_what_is_found():
    """One bitmap of the image would take 100 MB."""
    size, config = (10_000, 10_000), TilingConfig(1024, 128)
    windows = tile_windows(*size, config)
    tile = np.zeros((1024, 1024, 3), np.uint8)
    tile[480:560, 480:560] = 1, 0, 1
    tile[200:260, 700:1024] = 2, 0, 2  # on to the right border
    in_each = truth(tile)
    tracemalloc.start()
    found = stitch(windows, [in_each] * len(windows), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(windows) == 12 * 12
    assert len(found) == 2 * len(windows)
    assert peak < 20e6
    assert found.rles is not None
    assert sum(int(coco_mask.area(rle)) for rle in as_bytes(found)) == len(windows) * (80 * 80 + 60 * 324)


def test_tiles_cover_the_image_and_overlap():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 400, 2).tolist()
        config = TilingConfig(int(rng.integers(16, 120)), int(rng.integers(1, 16)))
        windows = tile_windows(height, width, config)
        covered = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in windows.tolist():
            assert (x2 - x1, y2 - y1) == (min(config.tile, width), min(config.tile, height))
            covered[y1:y2, x1:x2] = True
        assert covered.all()
        for starts in (np.unique(windows[:, 0]), np.unique(windows[:, 1])):
            assert (np.diff(starts) <= config.tile - config.pixels_shared).all()
        assert len(np.unique(windows, axis=0)) == len(windows)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (8, 2, "tile must be at least 16, not 8"),
        (64, 0, "overlap must be at least 1, not 0"),
        (64, -3, "overlap must be at least 1, not -3"),
        (64, 64, "tiles of 64 pixels cannot overlap by 64; give from 1 to 63"),
    ],
)
def test_impossible_tiles(tile, overlap, message):
    with pytest.raises(UserError, match=message):
        TilingConfig(tile, overlap)


def test_an_image_that_cannot_be_read_is_left_out(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [scene(0, 60, 80, 30, 8), tmp_path / "broken.png", scene(1, 60, 80, 30, 8)]
    failed = []
    predictor = TiledPredictor(Oracle(), TilingConfig(64))
    found = list(predictor.stream(images, lambda image, error: failed.append((image, str(error)))))
    assert [len(f) for f in found] == [len(truth(images[0])), len(truth(images[2]))]
    assert [image for image, _ in failed] == [tmp_path / "broken.png"]
    with pytest.raises(UserError, match=r"broken\.png"):
        list(predictor.stream(images))
