"""Augmented masks, their cost, and the limit of instances, on real photographs."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import (
    CocoConfig,
    DataConfig,
    LargeScaleJitterConfig,
    load_coco,
    to_rle,
    train_batches,
    trainable_records,
)
from mask_rcnn_jax.data.augment import steps
from mask_rcnn_jax.data.augment.reading import read_picture, training_sample
from tests.data.test_augment import Drawn, detectron2_geometry
from tests.data.test_examples import paste

LSJ = DataConfig(CocoConfig(), canvas=(512, 512), large_scale_jitter=LargeScaleJitterConfig(), num_workers=0)


NUCLEI = pytest.param("nuclei", marks=pytest.mark.slow)  # their many outlines take long to read


@functools.cache
def load(shared, name, split="train"):
    return load_coco(CocoConfig(str(shared / "data" / name)), split)


def cut(sample, row):
    """The sample with one of its instances."""
    return sample.select(np.array([row]))


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.mark.parametrize("name", ["coco_mini", NUCLEI, "balloon"])
def test_jittered_masks_are_the_resized_and_cut_bitmaps(shared, name):
    """Polygons and RLEs, against bitmaps that pycocotools decodes and Pillow resizes, and their boxes."""
    dataset, overlaps = load(shared, name), []
    records = trainable_records(dataset, LSJ)
    for share, offset, index in [(0.1, 0.5, 3), (0.4, 0.2, 8), (0.7, 0.9, 15), (0.95, 0.4, 22), (0.6, 0.0, 31)]:
        record = records[index]
        sample = steps.large_scale_jitter(read_picture(record, LSJ), record, LSJ, Drawn(share, offset))
        size = (record.height, record.width)
        (height, width), (y, x) = detectron2_geometry(*size, 512, 0.1 + share * 1.9, offset)
        expected = []
        for instance in np.flatnonzero(~record.iscrowd).tolist():
            bitmap = coco_mask.decode(to_rle(record.segmentations[instance], *size)) * np.uint8(255)
            resized = Image.fromarray(bitmap).resize((int(width), int(height)), Image.Resampling.BILINEAR)
            whole = np.zeros((512, 512), bool)
            seen = np.asarray(resized)[y : y + 512, x : x + 512] >= 128
            whole[: seen.shape[0], : seen.shape[1]] = seen
            if whole.sum() > 150:
                expected.append(whole)
        assert len(sample.boxes) >= len(expected)
        pasted = [paste(cut(sample, row)) for row in range(len(sample.boxes))]
        for bitmap in expected:
            best = int(np.argmax([iou(bitmap, other) for other in pasted]))
            overlaps.append(iou(bitmap, pasted[best]))
            rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
            tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            # Annotated boxes and polygons differ from each other by a pixel or two of the original.
            slack = 3 + 2 * max(height / record.height, 1) + 0.02 * (tight[2:] - tight[:2]).max()
            assert abs(sample.boxes[best] - tight).max() < slack
    assert len(overlaps) >= 5
    assert np.mean(overlaps) > 0.95


def test_a_pixel_belongs_to_the_image_or_to_what_was_pasted(shared):
    """Of each instance's pixels, hardly any differ from the image without pasting, or nearly all do."""
    records = trainable_records(load(shared, "coco_mini"), LSJ)
    config, shares = replace(LSJ, copy_paste=1.0, flip=0.5), []
    for seed in range(8):
        alone = training_sample(records[seed], replace(config, copy_paste=0.0), np.random.default_rng(seed))
        both = training_sample(records[seed], config, np.random.default_rng(seed), (), records)
        differs = (alone.image != both.image).any(axis=2)
        for row in range(len(both.boxes)):
            mask = paste(replace(both, boxes=both.boxes[row : row + 1], masks=both.masks[row : row + 1]))
            if mask.sum() > 400:
                shares.append((mask & differs).sum() / mask.sum())
    below, pasted = [s for s in shares if s < 0.06], [s for s in shares if s > 0.9]
    assert len(below) + len(pasted) == len(shares)
    assert min(len(below), len(pasted)) >= 5


@pytest.mark.parametrize("name", [NUCLEI, "coco_person_kp"])
def test_a_hundred_instances_cost_less_than_two_megabytes(shared, name):
    """All that goes to the device beside the pixels; the image's size does not matter."""
    dataset = load(shared, name)
    for canvas in [(256, 256), (1344, 1344)]:
        config = replace(LSJ, canvas=canvas, max_instances=100)
        batch = next(train_batches(dataset, config, 2, 0, range(1)))
        cost = (sum(array.nbytes for array in jax.tree.leaves(batch)) - batch.inputs.images.nbytes) / 2
        assert cost < 2e6


def test_the_most_crowded_image_gives_random_subsets_and_a_count(shared):
    """375 nuclei and 100 slots: every nucleus gets its turn, none is kept twice, and 275 are counted as dropped."""
    content = json.loads((shared / "data" / "nuclei" / "annotations" / "instances_train.json").read_bytes())
    counts = np.bincount([annotation["image_id"] for annotation in content["annotations"]])
    assert counts.max() == 375
    dataset = load(shared, "nuclei")
    record = next(record for record in dataset.records if record.image_id == counts.argmax())
    config = DataConfig(CocoConfig(), short_side=(256,), canvas=(256, 352), max_side=352, flip=0.0, num_workers=0)
    everything = training_sample(record, replace(config, max_instances=400), np.random.default_rng(0))
    assert (len(everything.boxes), everything.dropped) == (375, 0)
    turns = np.zeros(375, int)
    for seed in range(30):
        example = training_sample(record, config, np.random.default_rng(seed))
        assert (len(example.boxes), example.dropped) == (100, 275)
        rows = (example.boxes[:, None] == everything.boxes[None]).all(axis=2).argmax(axis=1)
        assert len(set(rows.tolist())) == 100
        np.testing.assert_array_equal(example.grids(56), everything.grids(56)[rows])
        turns[rows] += 1
    assert turns.min() >= 1  # a nucleus misses 30 draws with probability 1e-4
    assert turns.max() <= 20

    only = replace(dataset, records=[record])
    batch = next(train_batches(only, config, 1, 0, range(1)))
    assert batch.inputs.ground_truth.valid.sum() == 100
    assert batch.dropped_instances.tolist() == [275]
