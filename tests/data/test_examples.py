"""Augmented examples: image, boxes and masks stay together through every transform."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.data import CocoConfig, DataConfig, load_coco
from mask_rcnn_jax.data.augment.reading import training_sample
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import annotation, write_dataset

PLAIN = DataConfig(CocoConfig(), short_side=(90,), max_side=200, canvas=(128, 128), flip=0.0)


def bright_shapes(tmp_path, size=(60, 80)):
    """A record whose instances are exactly the bright pixels: a wedge as polygon, an L as RLE."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    wedge = (x > 10) & (y > 8) & (y < 38) & (x < 40 - (y - 8) / 2)
    corner = ((x > 45) & (x < 70) & (y > 30) & (y < 36)) | ((x > 45) & (x < 50) & (y > 30) & (y < 55))
    image[wedge | corner] = 255
    runs = np.flatnonzero(np.diff(np.concatenate([[False], corner.T.ravel()])))
    counts = np.diff(np.concatenate([[0], runs, [height * width]])).tolist()
    annotations = [
        annotation(id=1, bbox=[10, 8, 30, 30], segmentation=[[10, 8, 40, 8, 25, 38, 10, 38]]),
        annotation(id=2, bbox=[45, 30, 25, 25], segmentation={"size": [height, width], "counts": counts}),
        annotation(id=3, bbox=[0, 0, 80, 60], segmentation=[[0, 0, 80, 0, 80, 60]], iscrowd=1),
    ]
    images = [{"id": 7, "file_name": "7.png", "width": width, "height": height}]
    dataset = load_coco(write_dataset(tmp_path, annotations, images=images), "train")
    Image.fromarray(image).save(dataset.records[0].path)
    return dataset.records[0]


def paste(example):
    """The union of the examples' masks, at the centres of the image's pixels."""
    height, width = example.image.shape[:2]
    canvas = np.zeros((height, width), bool)
    for (x1, y1, x2, y2), mask in zip(example.boxes, example.grids(56), strict=True):
        i = np.floor((np.arange(height) + 0.5 - y1) / (y2 - y1) * len(mask)).astype(int)
        j = np.floor((np.arange(width) + 0.5 - x1) / (x2 - x1) * len(mask)).astype(int)
        rows, columns = (i >= 0) & (i < len(mask)), (j >= 0) & (j < len(mask))
        canvas[np.ix_(rows, columns)] |= mask[np.ix_(i[rows], j[columns])] > 127
    return canvas


AUGMENTATIONS = {
    "none": {},
    "flip": {"flip": 1.0},
    "vertical flip": {"vertical_flip": 1.0},
    "turn": {"rotate90": 1.0},
    "half-turn": {"rotate90": 1.0, "canvas": (128, 160)},
    "crop": {"crop": (64, 72)},
    "torchvision": {"resize": "torchvision"},
    "all": {"flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5, "crop": (70, 60), "short_side": (60, 75, 100)},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_masks_and_boxes_stay_on_their_pixels(tmp_path, name):
    record = bright_shapes(tmp_path)
    config = replace(PLAIN, **AUGMENTATIONS[name])
    for seed in range(8):
        example = training_sample(record, config, np.random.default_rng(seed))
        bright = example.image[..., 0] > 127
        pasted = paste(example)
        assert (bright & pasted).sum() / (bright | pasted).sum() > 0.9
        height, width = example.image.shape[:2]
        assert (example.boxes >= 0).all()
        assert (example.boxes <= [width, height] * 2).all()
        for box in example.boxes:  # each side of a box touches its instance
            x1, y1, x2, y2 = np.round(box).astype(int)
            inside = bright[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1]
            assert inside[:3].any()
            assert inside[-3:].any()
            assert inside[:, :3].any()
            assert inside[:, -3:].any()


def test_crops_are_small_enough_and_drop_what_they_lose(tmp_path):
    record = bright_shapes(tmp_path)
    config = replace(PLAIN, crop=(30, 40))
    counts = set()
    for seed in range(20):
        example = training_sample(record, config, np.random.default_rng(seed))
        assert example.image.shape == (30, 40, 3)
        counts.add(len(example.boxes))
        assert example.grids(56).any(axis=(1, 2)).all()
    assert counts == {0, 1, 2}  # none at times, for the middle of the L's box is empty


def test_crops_of_portrait_images_are_transposed(tmp_path):
    record = bright_shapes(tmp_path, size=(100, 80))
    example = training_sample(record, replace(PLAIN, crop=(30, 50)), np.random.default_rng(0))
    assert example.image.shape == (50, 30, 3)


def test_crowds_are_left_out(tmp_path):
    record = bright_shapes(tmp_path)
    assert len(training_sample(record, PLAIN, np.random.default_rng(0)).boxes) == 2
    assert record.iscrowd.sum() == 1


def test_a_random_subset_of_too_many_instances_is_kept_and_counted(tmp_path):
    record = bright_shapes(tmp_path)
    config = replace(PLAIN, max_instances=1)
    examples = [training_sample(record, config, np.random.default_rng(seed)) for seed in range(10)]
    assert {example.dropped for example in examples} == {1}
    assert {len(example.boxes) for example in examples} == {1}
    assert len({float(example.boxes[0, 0]) for example in examples}) == 2  # both get their turn


def test_depends_on_the_generator_alone(tmp_path):
    record = bright_shapes(tmp_path)
    config = replace(PLAIN, **AUGMENTATIONS["all"])
    first, second = (training_sample(record, config, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.grids(56), second.grids(56))


def test_an_image_of_another_size_is_named(tmp_path):
    record = bright_shapes(tmp_path)
    Image.new("RGB", (70, 60)).save(record.path)
    with pytest.raises(UserError, match=r"7\.png is 70 x 60 as displayed but annotated as 80 x 60"):
        training_sample(record, PLAIN, np.random.default_rng(0))
