"""Canvases: chosen as well as a search of all finds, bounded in number, and no image or class the worse for them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import (
    CocoConfig,
    DataConfig,
    LargeScaleJitterConfig,
    eval_batches,
    load_coco,
    plan_batches,
    train_batches,
)
from mask_rcnn_jax.data.batching.canvases import (
    canvas_numbers,
    choose_canvases,
    landscape_canvases,
    numbered_canvases,
    padding,
    training_sizes,
    without_rare,
)
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training import ExperimentConfig
from tests.data.coco_files import annotation, write_dataset
from tests.data.test_augment import digest
from tests.data.test_pipeline import assert_same

CONFIG = DataConfig(
    CocoConfig(),
    short_side=(20, 28),
    short_side_eval=28,
    max_side=56,
    canvas=(32, 64),
    smaller_canvases=((32, 32),),
    smaller_canvases_eval=((32, 32),),
    max_instances=3,
    num_workers=0,
)


def sizes_like_coco(count: int, seed: int) -> np.ndarray:
    """Mostly 4:3 and 3:2, at several short sides."""
    rng = np.random.default_rng(seed)
    short = rng.choice([640, 704, 800], count)
    aspect = np.where(rng.random(count) < 0.7, rng.choice([4 / 3, 3 / 2], count), rng.uniform(1, 1.68, count))
    return np.stack([short, np.minimum((short * aspect).astype(int), 1333)], axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_three_canvases_are_the_best_three_of_all(seed: int) -> None:
    sizes = sizes_like_coco(60, seed)
    chosen = choose_canvases(sizes, 3, divisor=64)
    needed = -(-sizes // 64) * 64
    whole = tuple(needed.max(axis=0).tolist())
    sides = itertools.product(np.unique(needed[:, 0]).tolist(), np.unique(needed[:, 1]).tolist())
    best = min(padding(sizes, [*pair, whole]) for pair in itertools.combinations(sides, 2))
    assert padding(sizes, chosen) == pytest.approx(best)
    assert chosen[-1] == whole
    assert [height * width for height, width in chosen] == sorted(height * width for height, width in chosen)
    assert choose_canvases(sizes[::-1], 3, divisor=64) == chosen


def test_more_canvases_pad_less_and_one_holds_everything() -> None:
    sizes = sizes_like_coco(500, 0)
    ratios = [padding(sizes, choose_canvases(sizes, count)) for count in range(1, 9)]
    assert ratios == sorted(ratios, reverse=True)
    assert choose_canvases(sizes, 1) == ((800, 1344),)
    assert choose_canvases(np.array([[30, 40], [30, 40]]), 4) == ((32, 64),)  # there is nothing to gain
    assert padding(np.array([[10, 20], [20, 50]]), [(16, 32), (32, 64)]) == (16 * 32 + 32 * 64) / (200 + 1000)


def test_many_sizes_are_chosen_among_in_bounded_time() -> None:
    sizes = np.random.default_rng(0).integers(100, 8000, (2000, 2))
    sizes.sort(axis=1)
    chosen = choose_canvases(sizes, 4)
    assert (chosen[-1] >= sizes).all()
    assert padding(sizes, chosen) < 0.7 * padding(sizes, chosen[-1:])


@pytest.fixture
def dataset(tmp_path):
    """60 images from square to 2:1, a third of them portrait."""
    rng = np.random.default_rng(0)
    sizes = [(20, round(20 * rng.choice([1.0, 1.1, 1.5, 2.0]))) for _ in range(60)]
    sizes = [size[::-1] if i % 3 == 0 else size for i, size in enumerate(sizes)]
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    annotations = [annotation(id=i, image_id=i) for i in range(len(sizes))]
    loaded = load_coco(write_dataset(tmp_path, annotations, images), "train")
    for record in loaded.records:
        pixels = np.random.default_rng(record.image_id).integers(1, 256, (record.height, record.width, 3), np.uint8)
        Image.fromarray(pixels).save(record.path)
    return loaded


def test_each_image_takes_the_smallest_canvas_that_holds_it(dataset) -> None:
    config = replace(CONFIG, smaller_canvases=((32, 32), (32, 48)))
    assert landscape_canvases(config) == [(32, 32), (32, 48), (32, 64)]
    numbered = numbered_canvases(config)
    numbers = canvas_numbers(dataset.records, config)
    assert numbers.shape == (60, 2)
    for record, of_record in zip(dataset.records, numbers.tolist(), strict=True):
        for short_side, number in zip(config.short_side, of_record, strict=True):
            long_side = round(max(record.height, record.width) * short_side / min(record.height, record.width))
            expected = (32, 32 if long_side <= 32 else 48 if long_side <= 48 else 64)
            assert numbered[number] == (expected[::-1] if record.height > record.width else expected)
    # What is not smaller does not count, so that `canvas` can be set alone; nor does anything where images fill it.
    assert landscape_canvases(replace(config, canvas=(32, 32))) == [(32, 32)]
    assert landscape_canvases(replace(config, large_scale_jitter=LargeScaleJitterConfig())) == [(32, 64)]
    one = replace(config, smaller_canvases=())
    portrait = [record.height > record.width for record in dataset.records]
    np.testing.assert_array_equal(canvas_numbers(dataset.records, one)[:, 0], portrait)
    with pytest.raises(UserError, match=r"does not fit on data\.canvas"):
        canvas_numbers(dataset.records, replace(config, short_side=(40,), max_side=80))


def test_a_canvas_that_few_images_take_is_none_of_an_epoch() -> None:
    config = replace(CONFIG, smaller_canvases=((32, 32), (32, 48)), canvas=(32, 64))
    numbers = np.repeat([0, 1, 2, 4, 5], [3, 10, 2, 8, 1])[:, None]
    moved = without_rare(numbers, config, 4)  # eight images and more have a canvas of their own
    np.testing.assert_array_equal(moved[:, 0], np.repeat([1, 2, 4, 5], [13, 2, 8, 1]))
    np.testing.assert_array_equal(without_rare(numbers, config, 7)[:, 0], np.repeat([2, 5], [15, 9]))
    # Of two short sides each is drawn for half of the images.
    both = np.array([[0, 1]] * 15 + [[1, 1]] * 20)
    np.testing.assert_array_equal(without_rare(both, config, 4), np.ones((35, 2)))
    np.testing.assert_array_equal(without_rare(both, config, 3), both)


def grouped_one_by_one(groups, batch_size, num_steps, seed):
    """Records and sizes as they come, each batch as soon as its group has enough."""
    waiting, batches, epoch, sizes = {}, [], 0, np.random.default_rng([seed, 0, 0, 0, 1])
    while True:
        for record in np.random.default_rng([seed, epoch]).permutation(len(groups)):
            size = sizes.integers(groups.shape[1])
            members = waiting.setdefault(groups[record, size], [])
            members.append(record * groups.shape[1] + size)
            if len(members) == batch_size:
                batches.append(list(members))
                members.clear()
                if len(batches) == num_steps:
                    return batches
        epoch += 1


def test_the_plan_groups_what_was_drawn_as_it_comes() -> None:
    groups = np.random.default_rng(1).integers(0, 5, (31, 3))
    long = plan_batches(groups, 4, 200, 7)
    np.testing.assert_array_equal(long, grouped_one_by_one(groups, 4, 200, 7))
    for steps in (0, 1, 17):
        np.testing.assert_array_equal(plan_batches(groups, 4, steps, 7), long[:steps])
    assert all(len(set(groups.ravel()[batch])) == 1 for batch in long)


def test_canvases_change_neither_how_often_an_image_is_seen_nor_when_a_class_is() -> None:
    # Records of the first class lie mostly on canvases of their own, and every size of one on another canvas.
    rng = np.random.default_rng(0)
    classes = np.arange(600) < 90
    canvases = np.where(classes, rng.choice([0, 4], 600), rng.choice([1, 2, 5, 6], 600))
    canvases = np.stack([canvases, canvases + 1], axis=1)
    plan = plan_batches(canvases, 8, 3000, 0)
    records, sizes = np.divmod(plan, 2)
    # 40 epochs, of which at most seven images of each of eight groups are still waiting.
    counts = np.bincount(records.ravel(), minlength=600)
    assert counts.sum() == 24_000
    assert counts.min() >= 39
    assert counts.max() <= 41
    assert sizes.mean() == pytest.approx(0.5, abs=0.02)
    share = np.add.accumulate(classes[records].mean(axis=1))
    for steps in (75, 150):  # an epoch has 75
        windows = (share[steps:] - share[:-steps]) / steps
        np.testing.assert_allclose(windows, classes.mean(), atol=0.06)
    # Whoever is looked at has other company each time.
    for record in (0, 100, 599):
        batches = [tuple(sorted(batch)) for batch in records if record in batch]
        assert len(set(batches)) == len(batches) == counts[record]


def test_batches_have_few_shapes_and_their_images_fill_them(dataset) -> None:
    batches = list(train_batches(dataset, CONFIG, 2, 0, range(120)))
    shapes = {batch.inputs.images.shape[1:3] for batch in batches}
    assert shapes == {(32, 32), (32, 64), (64, 32)}  # at most twice as many as canvases
    sizes = np.concatenate([batch.inputs.image_sizes for batch in batches])
    assert {20, 28} <= set(sizes.min(axis=1).tolist())
    for batch in batches:
        canvas = batch.inputs.images.shape[1:3]
        fits = (batch.inputs.image_sizes <= 32).all(axis=1)
        assert (fits == (canvas == (32, 32))).all()
        for image, (height, width) in zip(batch.inputs.images, batch.inputs.image_sizes, strict=True):
            assert image[:height, :width].all()
            assert not image[height:].any()
            assert not image[:, width:].any()
    counts = np.bincount(np.concatenate([batch.image_ids for batch in batches]), minlength=60)
    assert counts.max() - counts.min() <= 2


def test_batches_are_those_of_seed_and_step_on_any_number_of_hosts(dataset) -> None:
    whole = list(train_batches(dataset, CONFIG, 4, 5, range(12)))
    assert len({batch.inputs.images.shape for batch in whole}) == 3
    assert digest(train_batches(dataset, CONFIG, 4, 5, range(7, 12))) == digest(whole[7:])
    shares = [list(train_batches(dataset, CONFIG, 4, 5, range(12), (index, 2))) for index in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert_same(batch.inputs.images, np.concatenate([part.inputs.images for part in parts]))


def test_what_cannot_be_read_is_replaced_on_the_same_canvas(dataset) -> None:
    config = replace(CONFIG, broken_images="skip")
    for record in dataset.records[::4]:
        with open(record.path, "wb") as file:
            file.write(b"spoilt")
    batches = list(train_batches(dataset, config, 2, 0, range(40)))
    assert sum(batch.replaced_images.sum() for batch in batches) > 5
    for batch in batches:
        fits = (batch.inputs.image_sizes <= 32).all(axis=1)
        assert (fits == (batch.inputs.images.shape[1:3] == (32, 32))).all()


def test_quarter_turns_are_those_of_square_canvases(dataset) -> None:
    turned = replace(CONFIG, short_side=(28,), canvas=(64, 64), smaller_canvases=((32, 48),), rotate90=1.0, flip=0.0)
    shapes = set()
    for batch in train_batches(dataset, turned, 4, 0, range(12)):
        shapes.add(batch.inputs.images.shape[1:3])
        assert (batch.inputs.image_sizes <= batch.inputs.images.shape[1:3]).all()
    assert shapes == {(32, 48), (48, 32), (64, 64)}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_evaluation_shows_every_image_once_on_its_canvas(dataset, batch_size: int) -> None:
    config = replace(CONFIG, smaller_canvases_eval=((32, 32), (32, 48)))
    batches = list(eval_batches(dataset, config, batch_size))
    assert sorted(np.concatenate([batch.image_ids[batch.valid] for batch in batches])) == list(range(60))
    assert {batch.images.shape[1:3] for batch in batches} == {(32, 32), (32, 48), (32, 64), (48, 32), (64, 32)}
    assert len({batch.images.shape for batch in batches}) == 5  # one program a canvas
    assert sum(not batch.valid.all() for batch in batches) <= 5
    for batch in batches:
        canvas = batch.images.shape[1:3]
        for height, width in batch.image_sizes[batch.valid].tolist():
            expected = (32, 32 if max(height, width) <= 32 else 48 if max(height, width) <= 48 else 64)
            assert canvas == (expected[::-1] if height > width else expected)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["data.smaller_canvases=(64,96),(96,65)"],
            "data.smaller_canvases[1][1] must be a multiple of 32, at least 32 and at most 32768, not 65",
        ),
        (
            ["data.smaller_canvases_eval=(96,64)"],
            "data: smaller_canvases_eval (96, 64) is portrait; give (height, width) of the landscape canvas",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(assignments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        override(ExperimentConfig(), assignments)
    assert str(caught.value) == message


def test_four_canvases_pad_cocos_images_by_few_pixels(shared) -> None:
    """Of COCO's usual sizes; one canvas of 832 x 1344 computes 1.26 pixels for each of the images', and 1.53."""
    data = DataConfig(CocoConfig(str(shared / "data" / "coco_mini")))
    for split, config, least, most in (("val", data.in_evaluation(), 1.25, 1.05), ("train", data, 1.5, 1.15)):
        records = load_coco(data.source, split).records
        sizes = training_sizes(records, config)
        assert padding(sizes, [config.canvas]) > least
        *smaller, largest = choose_canvases(sizes, 4)
        chosen = replace(config, canvas=largest, smaller_canvases=tuple(smaller))
        taken = np.array(numbered_canvases(chosen))[canvas_numbers(records, chosen)].prod(axis=2)
        assert taken.sum() / sizes.prod(axis=1).sum() == pytest.approx(padding(sizes, [*smaller, largest]))
        assert padding(sizes, [*smaller, largest]) <= most
