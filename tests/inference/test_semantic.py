"""Maps of classes and instances beside a loop over pixels, and the files that `mask-rcnn predict` makes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.cli.prediction.outputs import FORMATS
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections, semantic_map
from tests.inference.test_detections import encode

SIDES = (9, 7)


def overlapping(count: int = 12, num_classes: int = 3) -> Detections:
    """Instances that hide each other, two of equal score, in no order; one is empty."""
    rng = np.random.default_rng(0)
    bitmaps = rng.uniform(size=(count, *SIDES)) < 0.25
    bitmaps[3] = False
    scores = rng.permutation(np.linspace(0.1, 0.9, count)).astype(np.float32)
    scores[5] = scores[8]
    return Detections(
        height=SIDES[0],
        width=SIDES[1],
        boxes=np.tile(np.array([0, 0, *SIDES[::-1]], np.float32), (count, 1)),
        scores=scores,
        classes=rng.integers(0, num_classes, count).astype(np.int32),
        class_names=tuple(map(str, range(num_classes))),
        rles=tuple(encode(bitmap) for bitmap in bitmaps),
    )


def by_loops(found: Detections) -> tuple[np.ndarray, np.ndarray]:
    classes, instances = np.zeros(SIDES, int), np.zeros(SIDES, int)
    for y, x in np.ndindex(SIDES):
        best = 0.0
        for i in range(len(found)):
            if found.masks[i, y, x] and found.scores[i] > best:
                best, classes[y, x], instances[y, x] = found.scores[i], found.classes[i] + 1, i + 1
    return classes, instances


@pytest.mark.parametrize(("num_classes", "dtype"), [(3, np.uint8), (255, np.uint8), (300, np.uint16)])
def test_every_pixel_is_of_the_best_instance(num_classes: int, dtype: type) -> None:
    found = overlapping(num_classes=num_classes)
    classes, instances = by_loops(found)
    assert len(np.unique(instances)) > 5
    assert (instances == 0).any()
    maps = semantic_map(found)
    assert maps.classes.dtype == dtype
    np.testing.assert_array_equal(maps.classes, classes)
    np.testing.assert_array_equal(maps.instances, instances)
    nothing = semantic_map(found.take(np.zeros(0, int)))
    assert not nothing.classes.any()
    assert not nothing.instances.any()


def test_boxes_stand_in_for_masks() -> None:
    found = replace(
        overlapping().take(np.arange(2)), boxes=np.array([[0, 0, 3, 2], [2, 1, 7, 9]], np.float32), rles=None
    )
    front = int(np.argmax(found.scores))
    assert semantic_map(found).instances[1, 2] == front + 1
    assert (semantic_map(found).instances > 0).sum() == 6 + 40 - 1


def test_classes_are_written_as_pixels(tmp_path: Path) -> None:
    for num_classes, mode in ((3, "L"), (300, "I;16")):
        found = overlapping(num_classes=num_classes)
        with FORMATS["semantic"](OutputFolder(tmp_path), range(num_classes)) as writer:
            writer.write(f"of_{num_classes}", found, lambda: np.zeros((*SIDES, 3), np.uint8))
        with Image.open(tmp_path / "semantic" / f"of_{num_classes}.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), by_loops(found)[0])


def test_more_classes_than_16_bits_number() -> None:
    with pytest.raises(UserError, match="65536 classes do not fit"):
        semantic_map(replace(overlapping(), class_names=("a",) * 2**16))
