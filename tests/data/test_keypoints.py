"""Keypoints from the annotation file to the batch: they stay on their pixels, and a mirror exchanges left and right."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.data import CocoConfig, DataConfig, describe_left_out, load_coco, train_batches, trainable_records
from mask_rcnn_jax.data.augment import transforms
from mask_rcnn_jax.data.augment.keypoint_flips import mirrored
from mask_rcnn_jax.data.augment.reading import training_sample
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import annotation, write_dataset

NAMES = ["nose", "left_eye", "right_eye"]
PERSON = {"id": 20, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [3, 1]]}
PLAIN = DataConfig(short_side=(192, 256), max_side=320, canvas=(256, 320), flip=0.0, num_workers=0)


def with_keypoints(flat, **changes):
    return annotation(keypoints=flat, **changes)


def loaded(tmp_path, annotations, categories=None):
    return load_coco(write_dataset(tmp_path, annotations, categories=categories or [PERSON]), "train")


def test_pixel_indices_become_centres_and_the_rest_zeros(tmp_path):
    entries = [with_keypoints([3, 4, 2, 5, 6.25, 1, 9, 9, 0], id=1), annotation(id=2), with_keypoints([], id=3)]
    dataset = loaded(tmp_path, entries)
    assert dataset.keypoint_names == tuple(NAMES)
    assert dataset.skeleton == ((0, 1), (2, 0))
    first, empty = dataset.records
    np.testing.assert_array_equal(first.keypoints[0], [[3.5, 4.5, 2], [5.5, 6.75, 1], [0, 0, 0]])
    assert not first.keypoints[1:].any()
    assert empty.keypoints.shape == (0, 3, 3)
    assert set(dataset.problems) == {"images without annotations"}


@pytest.mark.parametrize(
    ("flat", "why"),
    [
        ([1, 2, 2], "3 values instead of 9"),
        ("wrong", "no values instead of 9"),
        ([1, 2, 2, 3, None, 2, 5, 6, 2], "not all values are numbers"),
        ([1, 2, 2, 3, float("nan"), 2, 5, 6, 2], "not all values are numbers"),
        ([1, 2, 2, 3, 4, 7, 5, 6, 2], "a visibility is not 0, 1 or 2"),
    ],
)
def test_unusable_keypoints_are_counted_and_their_instance_kept(tmp_path, flat, why):
    entries = [
        with_keypoints(flat),
        with_keypoints([1, 1, 2] * 3, id=2),
        with_keypoints([1, 1, 2] * 3, id=3, image_id=3),
    ]
    dataset = loaded(tmp_path, entries)
    assert len(dataset.records[0].boxes) == 2
    assert not dataset.records[0].keypoints[0].any()
    assert dataset.records[0].keypoints[1].all()
    (line,) = dataset.describe_problems()
    assert "1 annotations with unusable keypoints" in line
    assert f"annotation 1 ({why}" in line


def test_what_categories_say_of_keypoints(tmp_path):
    other = {"id": 10, "name": "cat", "keypoints": ["tail"]}
    with pytest.raises(
        UserError, match=r"Categories 'cat' and 'person' in .*instances_train\.json have different keyp"
    ):
        loaded(tmp_path / "different", [], [PERSON, other])
    with pytest.raises(UserError, match=r"'person' in .* has the keypoints \['nose', 'nose'\]"):
        loaded(tmp_path / "twice", [], [PERSON | {"keypoints": ["nose", "nose"]}])
    mixed = loaded(tmp_path / "mixed", [annotation(category_id=10)], [PERSON, {"id": 10, "name": "cup"}])
    assert mixed.records[0].keypoints.shape == (1, 3, 3)
    edges = loaded(tmp_path / "edges", [], [PERSON | {"skeleton": [[0, 1], [1, 2], [3, 4], "x"]}])
    assert edges.skeleton == ((0, 1),)
    assert edges.problems["lines of a skeleton that join no two keypoints, left out"] == 3


def test_without_names_there_are_no_keypoints(tmp_path):
    dataset = loaded(tmp_path, [with_keypoints([1, 1, 2] * 3)], [{"id": 20, "name": "person"}])
    assert dataset.keypoint_names == dataset.skeleton == ()
    assert dataset.records[0].keypoints is None
    assert any("keypoints that no category names" in line for line in dataset.describe_problems())
    with pytest.raises(UserError, match=r"names no keypoints but data\.min_keypoints is 1; name a file"):
        trainable_records(dataset, replace(PLAIN, min_keypoints=1))


def test_the_annotation_file_can_be_named(tmp_path):
    config = write_dataset(tmp_path, [with_keypoints([1, 1, 2] * 3)], categories=[PERSON])
    folder = tmp_path / "annotations"
    (folder / "instances_train.json").rename(folder / "person_keypoints_train.json")
    dataset = load_coco(replace(config, annotation_file="person_keypoints_{split}.json"), "train")
    assert dataset.annotation_file.name == "person_keypoints_train.json"
    with pytest.raises(UserError, match=r"instances_train\.json does not exist"):
        load_coco(config, "train")


def test_flips_and_turns_undo_each_other():
    rng, names, size = np.random.default_rng(0), mirrored(NAMES), 64
    visibility = rng.integers(0, 3, (20, 3, 1))
    keypoints = np.concatenate([rng.uniform(0, size, (20, 3, 2)) * (visibility > 0), visibility], axis=2)
    keypoints = keypoints.astype(np.float32)
    once = transforms.flip_keypoints(keypoints, size, names)
    np.testing.assert_allclose(transforms.flip_keypoints(once, size, names), keypoints, atol=1e-5)
    np.testing.assert_array_equal(once[:, 1, 2], keypoints[:, 2, 2])  # what was the right eye is the left
    upside_down = transforms.vertical_flip_keypoints(keypoints, size, names)
    np.testing.assert_allclose(transforms.vertical_flip_keypoints(upside_down, size, names), keypoints, atol=1e-5)
    # Mirrors differ by a turn: both exchange left and right.
    np.testing.assert_allclose(transforms.rotate_keypoints(upside_down, size, size, 2), once, atol=1e-5)
    turned = transforms.rotate_keypoints(transforms.rotate_keypoints(keypoints, 48, 64, 1), 64, 48, 3)
    np.testing.assert_allclose(turned, keypoints, atol=1e-5)
    for moved in (once, upside_down, turned):
        assert not moved[moved[..., 2] == 0].any()


def test_cropped_keypoints_keep_the_border_and_lose_what_is_outside():
    keypoints = np.array([[[5, 6, 2], [4.9, 8, 2], [15, 26, 1], [15.1, 9, 2], [0, 0, 0]]], np.float32)
    expected = [[0, 0, 2], [0, 0, 0], [10, 20, 1], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(transforms.crop_keypoints(keypoints, (5, 6, 15, 26))[0], expected)


def test_keypoints_outside_the_image_are_not_trained_on(tmp_path):
    dataset = loaded(tmp_path, [with_keypoints([-4, 3, 2, 15, 11, 1, 3, 200, 2])])
    record = dataset.records[0]
    np.testing.assert_array_equal(record.keypoints[0, :, 2], [2, 1, 2])  # evaluation counts them
    config = DataConfig(short_side=(24,), max_side=32, canvas=(32, 32), flip=0.0)
    example = training_sample(record, config, np.random.default_rng(0), dataset.keypoint_names)
    np.testing.assert_allclose(example.keypoints[0], [[0, 0, 0], [31, 23, 1], [0, 0, 0]])


@pytest.fixture
def dots(tmp_path):
    """A black image whose instance has a red, a green and a blue keypoint: the middles of 5 px squares."""
    image = np.zeros((60, 80, 3), np.uint8)
    flat = []
    for channel, (x, y) in enumerate([(20, 15), (50, 20), (65, 45)]):
        image[y - 2 : y + 3, x - 2 : x + 3, channel] = 255
        flat += [x, y, 2]
    images = [{"id": 7, "file_name": "7.png", "width": 80, "height": 60}]
    box = {"bbox": [0, 0, 80, 60], "segmentation": [[0, 0, 80, 0, 80, 60, 0, 60]]}
    entry = with_keypoints(flat, **box)
    dataset = load_coco(write_dataset(tmp_path, [entry], images=images, categories=[PERSON]), "train")
    Image.fromarray(image).save(dataset.records[0].path)
    return dataset


AUGMENTATIONS = {
    "flip": {"flip": 1.0},
    "vertical flip": {"vertical_flip": 1.0},
    "turn": {"rotate90": 1.0},
    "crop": {"crop": (70, 60)},
    "all": {"flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5, "crop": (70, 60), "short_side": (60, 75, 100)},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_keypoints_stay_on_their_pixels(dots, name):
    config = DataConfig(**({"short_side": (90,), "canvas": (128, 128), "flip": 0.0} | AUGMENTATIONS[name]))
    record, seen = dots.records[0], 0
    for seed in range(12):
        # Of names without sides none changes place: each keypoint keeps its colour.
        example = training_sample(record, config, np.random.default_rng(seed), ("nose", "a", "b"))
        height, width = example.image.shape[:2]
        for channel, (x, y, visibility) in enumerate(example.keypoints[0]):
            weight = example.image[..., channel].astype(float)
            if visibility == 0:
                assert weight.sum() < 25 * 255 * (height / 60) ** 2
                continue
            assert 0 <= x <= width
            assert 0 <= y <= height
            if min(x, y, width - x, height - y) > 8:  # the whole square is in the image
                seen += 1
                rows, columns = np.mgrid[:height, :width] + 0.5
                middle = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
                np.testing.assert_allclose((x, y), middle, atol=0.1)
    assert seen > 10


def test_a_flipped_example_has_the_other_eye(dots):
    config = DataConfig(short_side=(60,), canvas=(128, 128), flip=1.0)
    example = training_sample(dots.records[0], config, np.random.default_rng(0), dots.keypoint_names)
    np.testing.assert_allclose(example.keypoints[0], [[59.5, 15.5, 2], [14.5, 45.5, 2], [29.5, 20.5, 2]])
    named = replace(config, keypoint_flips=(("nose", "right_eye"),))
    example = training_sample(dots.records[0], named, np.random.default_rng(0), dots.keypoint_names)
    np.testing.assert_allclose(example.keypoints[0], [[14.5, 45.5, 2], [29.5, 20.5, 2], [59.5, 15.5, 2]])


def test_every_real_keypoint_is_where_the_image_was_scaled_to(shared):
    source = CocoConfig(str(shared / "data" / "coco_person_kp"))
    config = replace(PLAIN, source=source, short_side=(256,))
    dataset = load_coco(source, "val")
    content = json.loads(dataset.annotation_file.read_text())
    annotations = {entry["id"]: entry for entry in content["annotations"]}
    count = 0
    for record in dataset.records:
        example = training_sample(record, config, np.random.default_rng(0), dataset.keypoint_names)
        height, width = example.image.shape[:2]
        kept = record.annotation_ids[~record.iscrowd]
        assert len(example.keypoints) == len(kept)
        for keypoints, number in zip(example.keypoints, kept.tolist(), strict=True):
            flat = np.array(annotations[number]["keypoints"], np.float64).reshape(17, 3)
            expected = (flat[:, :2] + 0.5) * [width / record.width, height / record.height]
            annotated = flat[:, 2] > 0
            np.testing.assert_array_equal(keypoints[:, 2], flat[:, 2])
            np.testing.assert_allclose(keypoints[annotated, :2], expected[annotated], atol=1e-3)
            count += int(annotated.sum())
    assert count == sum(entry["num_keypoints"] for entry in content["annotations"])


def test_batches_hold_keypoints_where_the_dataset_has_them(shared):
    source = CocoConfig(str(shared / "data" / "coco_person_kp"))
    dataset, config = load_coco(source, "val"), replace(PLAIN, source=source, max_instances=4, flip=0.5)
    for batch in train_batches(dataset, config, 4, 0, range(3)):
        truth = batch.inputs.ground_truth
        assert truth.keypoints.shape == (4, 4, 17, 3)
        assert truth.keypoints.dtype == np.float32
        assert not truth.keypoints[~truth.valid].any()
        assert truth.keypoints[truth.valid][..., 2].any()
    balloon = CocoConfig(str(shared / "data" / "balloon"))
    config = replace(config, source=balloon, max_side=256)
    assert next(train_batches(load_coco(balloon, "val"), config, 2, 0, range(1))).inputs.ground_truth.keypoints is None


def test_images_with_too_few_keypoints_are_left_out_and_counted(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(5)]
    entries = [
        with_keypoints([1, 1, 2, 2, 2, 1, 0, 0, 0], id=1, image_id=0),
        with_keypoints([1, 1, 1, 0, 0, 0, 0, 0, 0], id=2, image_id=1),
        annotation(id=3, image_id=2),
        with_keypoints([1, 1, 2] * 3, id=4, image_id=3, iscrowd=1),
        annotation(id=5, image_id=3),
    ]
    dataset = load_coco(write_dataset(tmp_path, entries, images=images, categories=[PERSON]), "train")
    for least, left in ((0, [0, 1, 2, 3]), (1, [0, 1]), (2, [0])):
        config = replace(PLAIN, min_keypoints=least)
        assert [record.image_id for record in trainable_records(dataset, config)] == left
    assert describe_left_out(dataset, PLAIN) == []
    (line,) = describe_left_out(dataset, replace(PLAIN, min_keypoints=1))
    assert line.endswith(": 3 images with fewer annotated keypoints than data.min_keypoints 1, not trained on")
    with pytest.raises(UserError, match="no usable annotations"):
        trainable_records(dataset, replace(PLAIN, min_keypoints=3))
