"""Labels of pixels: read from COCO's panoptic files, and moved with their images."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.data import (
    CocoConfig,
    DataConfig,
    LargeScaleJitterConfig,
    MixtureConfig,
    fingerprint,
    read_kinds,
    read_numbers,
    train_batches,
)
from mask_rcnn_jax.data.augment.reading import training_sample
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.structures import IGNORED
from tests.data.panoptic_files import COLOURS, HEIGHT, IDS, NAMES, WIDTH, write_panoptic
from tests.json_mutants import mutants

DATA = DataConfig(short_side=(HEIGHT,), max_side=WIDTH, canvas=(64, 96), flip=0.0, num_workers=0, max_instances=4)


@pytest.fixture
def source(tmp_path: Path) -> CocoConfig:
    return write_panoptic(tmp_path)


def kinds_in(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kind that each pixel's colour tells, and whether it tells one: a mixture of two does not."""
    kinds, told = np.full(image.shape[:2], 0, np.uint8), np.zeros(image.shape[:2], bool)
    for kind, colour in (COLOURS | {-1: (200, 0, 0), -2: (0, 0, 200)}).items():
        same = (image == colour).all(axis=-1)
        kinds[same], told[same] = max(kind, 0), True
    return kinds, told


def test_kinds_are_those_of_the_segments_and_of_prepared_files(source) -> None:
    dataset = source.load("train")
    assert (dataset.stuff_names, dataset.stuff_categories) == (NAMES, IDS)
    prepared = replace(source, semantic_folder="panoptic_stuff_{split}").load("train")
    for record, other in zip(dataset.records, prepared.records, strict=True):
        with Image.open(record.path) as image:
            expected, told = kinds_in(np.asarray(image))
        assert told.all()
        np.testing.assert_array_equal(read_kinds(record), expected)
        np.testing.assert_array_equal(read_kinds(other), expected)
        numbers = read_numbers(record)
        assert {0, 1, 2, 300, 70_000} == set(np.unique(numbers).tolist())
        of_number = {row[0]: tuple(row[1:]) for row in record.semantic.segments.tolist()}
        crowd = int(record.image_id == 0)
        assert of_number == {300: (2, -1, 0), 70_000: (1, -1, 0), 1: (0, 0, crowd), 2: (0, 1, 0)}
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(read_kinds(again.records[1]), read_kinds(dataset.records[1]))


def test_the_fingerprint_is_of_segments_and_not_of_places(source, tmp_path) -> None:
    dataset = source.load("train")
    moved = write_panoptic(tmp_path / "elsewhere").load("train")
    assert fingerprint(dataset) == fingerprint(moved)
    assert fingerprint(dataset) != fingerprint(replace(source, panoptic_file=None).load("train"))
    assert fingerprint(dataset) != fingerprint(write_panoptic(tmp_path / "other", seed=1).load("train"))


CHANGES: dict[str, dict[str, Any]] = {
    "flip": {"flip": 1.0},
    "vertical flip": {"vertical_flip": 1.0},
    "turn": {"rotate90": 1.0, "canvas": (96, 96)},
    "crop": {"crop": (30, 40)},
    "all of them": {"flip": 1.0, "vertical_flip": 1.0, "rotate90": 1.0, "canvas": (96, 96), "crop": (30, 40)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_labels_move_with_the_pixels_of_their_image(source, change) -> None:
    config = replace(DATA, **change)
    for seed, record in enumerate(source.load("train").records):
        sample = training_sample(record, config, np.random.default_rng(seed))
        expected, told = kinds_in(sample.image)
        assert told.all()
        np.testing.assert_array_equal(sample.semantic, expected)


JITTER = LargeScaleJitterConfig(0.5, 3.0)
SCALED: dict[str, dict[str, Any]] = {
    "smaller": {"short_side": (31,)},
    "larger": {"short_side": (70,), "max_side": 128},
    "as torchvision": {"short_side": (35,), "resize": "torchvision"},
    "jitter": {"large_scale_jitter": JITTER},
}


@pytest.mark.parametrize("change", SCALED.values(), ids=SCALED.keys())
def test_labels_are_scaled_with_their_image(source, change) -> None:
    """A pixel that interpolation has not mixed, nor those around it, has the label that its colour tells."""
    config = replace(DATA, flip=0.5, **change)
    for seed in range(6):
        sample = training_sample(source.load("train").records[seed % 3], config, np.random.default_rng(seed))
        assert sample.semantic.shape == sample.image.shape[:2]
        expected, told = kinds_in(sample.image)
        # What jitter leaves free is as grey as what is not annotated.
        whole = np.pad(told, 1, constant_values=True)
        whole = np.all(
            [whole[y : y + told.shape[0], x : x + told.shape[1]] for y in range(3) for x in range(3)], axis=0
        )
        assert whole.mean() > 0.4
        np.testing.assert_array_equal(sample.semantic[whole], expected[whole])


@pytest.mark.parametrize("size", [(31, 41), (70, 93), (48, 64), (7, 200)])
def test_labels_are_scaled_to_the_nearest(source, size) -> None:
    """By exact positions of centres, as Detectron2 does through Pillow."""
    from mask_rcnn_jax.data.augment.steps import resized_kinds

    record = source.load("train").records[0]
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new) for new, old in zip(size, (48, 64), strict=True))
    found = resized_kinds(record, size, (0, 0, size[1], size[0]), size)
    np.testing.assert_array_equal(found, read_kinds(record)[rows][:, columns])


def test_batches_hold_labels_on_the_canvas_and_ignore_its_padding(source) -> None:
    dataset = source.load("train")
    batches = train_batches(dataset, DATA, 3, seed=0, steps=range(1))
    inputs = next(batches).inputs
    batches.close()
    assert inputs.ground_truth.semantic.shape == (3, 64, 96)
    for image, kinds in zip(inputs.images, inputs.ground_truth.semantic, strict=True):
        expected = np.full((64, 96), IGNORED, np.uint8)
        expected[:HEIGHT, :WIDTH] = kinds_in(image[:HEIGHT, :WIDTH])[0]
        np.testing.assert_array_equal(kinds, expected)
    without = train_batches(replace(source, panoptic_file=None).load("train"), DATA, 3, seed=0, steps=range(1))
    assert next(without).inputs.ground_truth.semantic is None
    without.close()


def test_copy_paste_is_refused(source) -> None:
    with pytest.raises(UserError, match=r"which copy-paste does not move; set data\.copy_paste to 0"):
        train_batches(source.load("train"), replace(DATA, copy_paste=0.5), 3, seed=0, steps=range(1))


def test_a_mixture_has_no_kinds_of_stuff(source) -> None:
    mixed = MixtureConfig((source, replace(source, panoptic_file=None))).load("train")
    assert mixed.stuff_names == ()
    assert [record.semantic for record in mixed.records] == [None] * 6
    # Nor have the images that it is evaluated on: the two would not fit each other.
    assert MixtureConfig((source, source)).load("val").stuff_names == ()


def change_json(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / "annotations" / "panoptic_train.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


def segments(content: Any) -> list[Any]:
    return content["annotations"][1]["segments_info"]


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (
        lambda root: (root / "annotations" / "panoptic_train.json").unlink(),
        r"panoptic_train\.json does not exist; put it there, or set data\.source\.panoptic_file to none",
    ),
    "no JSON": (
        lambda root: (root / "annotations" / "panoptic_train.json").write_text("{"),
        r"panoptic_train\.json cannot be read: it is not JSON",
    ),
    "no list": (change_json(lambda c: c.pop("categories")), "has no list 'categories'; export it in COCO's panoptic"),
    "no PNG": (
        lambda root: (root / "annotations" / "panoptic_train" / "1.png").unlink(),
        r"1\.png, which belongs to .*panoptic_train\.json, does not exist; restore it",
    ),
    "an image without": (change_json(lambda c: c["annotations"].pop(2)), r"has no segments of image 2 \(.*2\.png\)"),
    "an image twice": (
        change_json(lambda c: c["annotations"].append(c["annotations"][0])),
        r"Annotation annotations\[3\] in .* has the image_id of another",
    ),
    "an unknown category": (
        change_json(lambda c: segments(c)[0].update(category_id=99)),
        r"annotations\[1\] in .* has a segment, segments_info\[0\], that has the unknown category_id 99; add it",
    ),
    "a number that no colour has": (
        change_json(lambda c: segments(c)[1].update(id=2**24)),
        r"segments_info\[1\], that has the id 16777216, which is not from 1 to 16777215",
    ),
    "two segments of a number": (
        change_json(lambda c: segments(c)[1].update(id=300)),
        "has two segments of one id; make the ids of an image's segments unique",
    ),
    "a thing that is none": (
        change_json(lambda c: c["categories"][0].update(isthing=1)),
        r"Category 10 \(categories\[0\]\) in .* is a thing that .*instances_train\.json has no category for",
    ),
    "neither thing nor stuff": (change_json(lambda c: c["categories"][0].pop("isthing")), "has no 'isthing'; add it"),
    "no stuff": (
        change_json(lambda c: c.update(categories=[x for x in c["categories"] if x["isthing"]], annotations=[])),
        r"has 0 kinds of stuff \(isthing 0\), not from 1 to 254",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_files_that_cannot_be_used_are_refused_in_a_sentence(source, tmp_path, spoil, message) -> None:
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        source.load("train")


def replaced(name: str, pixels: np.ndarray) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(pixels.astype(np.uint8)).save(root / name)


RGB, GREY = "annotations/panoptic_train/1.png", "panoptic_stuff_train/1.png"
BLANK = np.zeros((HEIGHT, WIDTH))
WRONG_PIXELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (replaced(RGB, np.zeros((20, 30, 3))), r"1\.png is 30 x 20, and its image .*1\.png 64 x 48; export it"),
    "a segment": (
        replaced(RGB, np.full((HEIGHT, WIDTH, 3), 9)),
        "holds the segment 592137, which the image's 'segments_info' does not list",
    ),
    "grey for colours": (replaced(RGB, BLANK), "is no PNG in RGB, whose colours are the numbers of segments"),
    "gone": (lambda root: (root / RGB).unlink(), "does not exist; put the PNG of segments in RGB of .* there"),
    "broken": (lambda root: (root / RGB).write_bytes(b"PNG"), r"1\.png cannot be read \(.*\); restore or replace"),
    "a kind": (
        replaced(GREY, BLANK + 3),
        r"holds 3, and the kinds are 0 \(things\) to 2, or 255 for what is not known",
    ),
    "colours for kinds": (
        replaced(GREY, np.zeros((HEIGHT, WIDTH, 3))),
        "does not hold one number from 0 to 255 a pixel; write a PNG in grey or with a palette",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG_PIXELS.values(), ids=WRONG_PIXELS.keys())
def test_pixels_that_cannot_be_used_are_refused_in_a_sentence(source, tmp_path, spoil, message) -> None:
    folder = "panoptic_stuff_{split}" if "kind" in message or "one number" in message else None
    record = replace(source, semantic_folder=folder).load("train").records[1]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        read_kinds(record)


def test_a_folder_of_kinds_needs_their_names() -> None:
    with pytest.raises(ValueError, match="semantic_folder holds kinds of stuff that panoptic_file names"):
        CocoConfig(semantic_folder="panoptic_stuff_{split}")


@pytest.mark.parametrize(("count", "seed"), [(150, 0), pytest.param(5_000, 1, marks=pytest.mark.slow, id="slow")])
def test_mutants_are_read_or_refused_in_a_sentence(source, tmp_path, count, seed) -> None:
    file = tmp_path / "annotations" / "panoptic_train.json"
    sound, read = json.loads(file.read_text()), 0
    for text in mutants(sound, count, seed):
        file.write_bytes(text)
        try:
            for record in source.load("train").records:
                read_kinds(record)
            read += 1
        except UserError:
            continue
    assert 0 < read < count
