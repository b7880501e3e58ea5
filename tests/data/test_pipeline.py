"""Plans and batches: grouped by orientation, reproducible, resumable, with any number of workers."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.data import CocoConfig, DataConfig, eval_batches, load_coco, plan_batches, train_batches
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import annotation, write_dataset

CONFIG = DataConfig(
    CocoConfig(), short_side=(24, 32), short_side_eval=32, max_side=64, canvas=(32, 64), max_instances=3, num_workers=0
)


@pytest.fixture
def dataset(tmp_path):
    """Five landscape, two portrait and one square image; image 5 has no annotations, image 6 four."""
    sizes = [(12, 16), (16, 12), (12, 24), (12, 16), (16, 16), (12, 16), (24, 12), (12, 16)]
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    owners = [0, 1, 2, 3, 4, 6, 6, 6, 6, 7]
    annotations = [annotation(id=i, image_id=owner) for i, owner in enumerate(owners)]
    loaded = load_coco(write_dataset(tmp_path, annotations, images=images), "train")
    for record in loaded.records:
        pixels = np.random.default_rng(record.image_id).integers(0, 256, (record.height, record.width, 3), np.uint8)
        Image.fromarray(pixels).save(record.path)
    return loaded


def grouped_one_by_one(orientation, batch_size, num_steps, seed):
    """Detectron2's AspectRatioGroupedDataset over the same stream."""
    buckets, batches, epoch = {}, [], 0
    while True:
        for index in np.random.default_rng([seed, epoch]).permutation(len(orientation)):
            bucket = buckets.setdefault(orientation[index], [])
            bucket.append(index)
            if len(bucket) == batch_size:
                batches.append(list(bucket))
                bucket.clear()
                if len(batches) == num_steps:
                    return batches
        epoch += 1


@pytest.mark.parametrize(("n", "batch_size"), [(23, 4), (5, 8), (1, 3), (40, 1)])
def test_plan_is_detectron2s_grouping(n, batch_size):
    orientation = np.random.default_rng(n).random(n) < 0.3
    expected = grouped_one_by_one(orientation, batch_size, 60, seed=7)
    np.testing.assert_array_equal(plan_batches(orientation, batch_size, 60, 7), expected)


def test_plan_of_a_longer_run_begins_the_same():
    orientation = np.arange(30) % 3 == 0
    long = plan_batches(orientation, 4, 200, 0)
    for steps in (0, 1, 17):
        np.testing.assert_array_equal(plan_batches(orientation, 4, steps, 0), long[:steps])
    assert (plan_batches(orientation, 4, 200, 1) != long).any()


def test_plan_visits_every_record_equally_often():
    plan = plan_batches(np.arange(12) < 4, 4, 30, 0)
    counts = np.bincount(plan.ravel(), minlength=12)
    assert counts.sum() == 120
    assert counts.max() - counts.min() <= 2


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_batches_hold_what_they_promise(dataset):
    batches = list(train_batches(dataset, CONFIG, 2, 0, range(20)))
    assert len(batches) == 20
    seen = set()
    for step, batch in enumerate(batches):
        shape = batch.inputs.images.shape
        assert shape in ((2, 32, 64, 3), (2, 64, 32, 3))
        assert batch.inputs.images.dtype == np.uint8
        np.testing.assert_array_equal(batch.inputs.example_index, [2 * step, 2 * step + 1])
        seen.update(batch.image_ids.tolist())
        truth = batch.inputs.ground_truth
        assert truth.masks.shape == (2, 3, 56, 56)
        for row in range(2):
            height, width = batch.inputs.image_sizes[row]
            image = batch.inputs.images[row]
            assert image[:height, :width].any()
            assert not image[height:].any()
            assert not image[:, width:].any()
            valid = truth.valid[row]
            assert valid.sum() == (3 if batch.image_ids[row] == 6 else 1)
            assert batch.dropped_instances[row] == (1 if batch.image_ids[row] == 6 else 0)
            for array in (truth.boxes, truth.classes, truth.masks):
                assert not array[row][~valid].any()
            assert (truth.boxes[row, valid, 2:] <= [width, height]).all()
    assert seen == {0, 1, 2, 3, 4, 6, 7}  # 5 has no annotations


def test_empty_images_can_be_kept(dataset):
    batches = train_batches(dataset, replace(CONFIG, keep_empty=True), 2, 0, range(20))
    empty = [batch.inputs.ground_truth.valid[batch.image_ids == 5] for batch in batches]
    assert sum(len(valid) for valid in empty)
    assert not any(valid.any() for valid in empty)


def test_a_resumed_run_goes_on_with_the_same_batches(dataset):
    whole = list(train_batches(dataset, CONFIG, 2, 5, range(9)))
    rest = list(train_batches(dataset, CONFIG, 2, 5, range(6, 9)))
    assert len(rest) == 3
    for first, second in zip(whole[6:], rest, strict=True):
        assert_same(first, second)
    assert list(train_batches(dataset, CONFIG, 2, 5, range(9, 9))) == []


def test_torchvision_resizing_keeps_fractions(dataset):
    batch = next(train_batches(dataset, replace(CONFIG, resize="torchvision"), 2, 0, range(1)))
    assert batch.inputs.images.dtype == np.float32
    assert (batch.inputs.images % 1).any()


def test_a_square_canvas_mixes_orientations(dataset):
    config = replace(CONFIG, canvas=(64, 64))
    batches = list(train_batches(dataset, config, 4, 0, range(10)))
    assert {batch.inputs.images.shape for batch in batches} == {(4, 64, 64, 3)}
    portrait = [batch.inputs.image_sizes[:, 0] > batch.inputs.image_sizes[:, 1] for batch in batches]
    assert any(rows.any() and not rows.all() for rows in portrait)


def test_evaluation_shows_every_image_once(dataset):
    batches = list(eval_batches(dataset, CONFIG, 3))
    shown = np.concatenate([batch.image_ids[batch.valid] for batch in batches])
    assert sorted(shown) == list(range(8))
    assert [batch.images.shape for batch in batches] == [(3, 32, 64, 3)] * 2 + [(2, 64, 32, 3)]
    for batch in batches:
        assert batch.valid.dtype == bool
        for row in range(len(batch.valid)):
            if batch.valid[row]:
                record = dataset.records[batch.image_ids[row]]
                np.testing.assert_array_equal(batch.original_sizes[row], [record.height, record.width])
                assert batch.image_sizes[row].min() == 32
            else:
                assert not batch.images[row].any()
    assert_same(batches[0], next(eval_batches(dataset, CONFIG, 3)))


def test_few_images_make_a_batch_of_few_rows(dataset):
    """Six images of one orientation and two of the other: all rows beyond them cost as much as an image."""
    for batch_size, multiple, expected in ((32, 8, [8, 8]), (32, 4, [8, 4]), (4, 4, [4, 4, 4]), (32, 1, [6, 2])):
        batches = list(eval_batches(dataset, CONFIG, batch_size, multiple=multiple))
        assert [len(batch.valid) for batch in batches] == expected
        assert sum(batch.valid.sum() for batch in batches) == 8


def test_images_that_do_not_fit_are_named_first(dataset):
    with pytest.raises(UserError, match=r"2\.png \(24 x 12\) does not fit on data\.canvas \(32, 48\)"):
        train_batches(dataset, replace(CONFIG, canvas=(32, 48)), 2, 0, range(1))
    with pytest.raises(UserError, match="does not fit"):
        eval_batches(dataset, replace(CONFIG, short_side_eval=40), 2)
    with pytest.raises(ValueError, match="is portrait"):
        replace(CONFIG, canvas=(64, 32))
    train_batches(dataset, replace(CONFIG, canvas=(32, 48), crop=(32, 48)), 2, 0, range(1)).close()


def test_nothing_to_train_on_is_said(tmp_path):
    dataset = load_coco(write_dataset(tmp_path, []), "train")
    with pytest.raises(UserError, match="no usable annotations"):
        train_batches(dataset, CONFIG, 2, 0, range(1))


def test_an_image_spoilt_during_the_run_is_named(dataset):
    for record in dataset.records:
        with open(record.path, "wb") as file:
            file.write(b"spoilt")
    with pytest.raises(UserError, match="cannot be read"):
        next(train_batches(dataset, CONFIG, 2, 0, range(1)))


def test_workers_give_the_same_batches_and_errors(dataset):
    inline = list(train_batches(dataset, CONFIG, 2, 3, range(1, 6)))
    workers = train_batches(dataset, replace(CONFIG, num_workers=2), 2, 3, range(1, 6))
    for first, second in zip(inline, workers, strict=True):
        assert_same(first, second)
    workers.close()

    early = train_batches(dataset, replace(CONFIG, num_workers=1), 2, 3, range(500))
    assert_same(next(early), next(train_batches(dataset, CONFIG, 2, 3, range(1))))
    early.close()
    early.close()

    with open(dataset.records[0].path, "wb") as file:
        file.write(b"spoilt")
    spoilt = train_batches(dataset, replace(CONFIG, num_workers=1), 2, 3, range(20))
    with pytest.raises(UserError, match=r"0\.png cannot be read"):
        list(spoilt)
    spoilt.close()


def test_data_does_not_bring_in_models():
    code = "import sys, json, mask_rcnn_jax.data; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"flax", "optax", "mask_rcnn_jax.models", "mask_rcnn_jax.ops"} & set(json.loads(output))
