"""Proposals from files: what is read, what is refused, and that they go with the image to the batch."""

import enum
import os
import pickle
import random
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from mask_rcnn_jax.config import from_json, to_json
from mask_rcnn_jax.data import (
    BoxProposals,
    CocoConfig,
    DataConfig,
    LargeScaleJitterConfig,
    ProposalFilesConfig,
    coco_dataset,
    eval_batches,
    fingerprint,
    load_coco,
    load_split,
    train_batches,
    with_proposals,
    write_proposals,
)
from mask_rcnn_jax.data.augment.reading import training_sample
from mask_rcnn_jax.data.proposals.files import read_proposals
from mask_rcnn_jax.errors import UserError
from tests.byte_mutants import mutant
from tests.data.coco_files import annotation, write_dataset

BOXES = {7: [[0, 0, 5, 5], [2, 1, 9, 8], [-3, 2, 4, 40]], 3: [[1, 1, 3, 2]]}
SCORES = {7: [0.1, 0.9, 0.5], 3: [-2.0]}
# Sorted, and clipped to 16 x 12 pixels.
EXPECTED = {7: [[2, 1, 9, 8], [0, 2, 4, 12], [0, 0, 5, 5]], 3: [[1, 1, 3, 2]]}


@pytest.fixture
def dataset(tmp_path):
    return load_coco(write_dataset(tmp_path / "data", [annotation()]), "train")


def proposals(boxes, scores):
    return BoxProposals(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32))


def npz(path, given):
    with path.open("wb") as file:
        write_proposals(file, ((image_id, proposals(*each)) for image_id, each in given.items()))
    return path


def whole(path):
    return npz(path, {image_id: (BOXES[image_id], SCORES[image_id]) for image_id in BOXES})


def saved(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **{name: np.array(value) for name, value in arrays.items()})


def pickled(path, protocol=2, **changes):
    arrays = {key: np.array(boxes, np.float32) for key, boxes in BOXES.items()}
    scores = [np.array(SCORES[key], np.float32) for key in BOXES]
    tree = {"ids": list(BOXES), "boxes": list(arrays.values()), "objectness_logits": scores, "bbox_mode": 0} | changes
    tree = {key: value for key, value in tree.items() if value is not None}
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


def found_in(dataset, path, slots=10):
    return {record.image_id: record.proposals for record in with_proposals(dataset, path, slots).records}


def refused(dataset, path):
    with pytest.raises(UserError) as caught:
        with_proposals(dataset, path, 10)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Files ------------------------------------------------------------------------------------------------------------


def box_mode(value, monkeypatch):
    """The member of an enumeration as Detectron2 pickles it."""
    module = ModuleType("detectron2.structures.boxes")
    module.BoxMode = enum.IntEnum("BoxMode", {"XYXY_ABS": 0, "XYWH_ABS": 1}, module=module.__name__)
    for name in ("detectron2", "detectron2.structures"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.BoxMode(value)


@pytest.mark.parametrize("form", ["npz", "detectron2", "detectron", "text ids", "sides", "enumeration", "protocol 5"])
def test_every_format_gives_the_same_proposals_best_first(form, dataset, tmp_path, monkeypatch):
    path = tmp_path / "proposals"
    if form == "npz":
        whole(path)
    else:
        as_sides = [np.array(boxes, np.float64) * 1.0 for boxes in BOXES.values()]
        for boxes in as_sides:
            boxes[:, 2:] -= boxes[:, :2]
        scores = [np.array(SCORES[key], np.float64) for key in BOXES]
        changes = {
            "detectron2": {},
            "detectron": {
                "ids": None,
                "indexes": np.array(list(BOXES)),
                "objectness_logits": None,
                "scores": scores,
                "bbox_mode": None,
            },
            "text ids": {"ids": ["7", "3"]},
            "sides": {"boxes": as_sides, "bbox_mode": 1},
            "enumeration": {"bbox_mode": box_mode(0, monkeypatch)},
            "protocol 5": {"protocol": 5},
        }
        pickled(path, **changes[form])
    for image_id, found in found_in(dataset, path).items():
        np.testing.assert_array_equal(found.boxes, EXPECTED[image_id])
        np.testing.assert_array_equal(found.scores, np.array(sorted(SCORES[image_id], reverse=True), np.float32))
        assert found.boxes.dtype == found.scores.dtype == np.float32


def test_the_best_of_more_than_the_slots_are_taken(dataset, tmp_path):
    found = found_in(dataset, whole(tmp_path / "given.npz"), slots=2)
    np.testing.assert_array_equal(found[7].boxes, EXPECTED[7][:2])


def test_what_cannot_be_used_is_left_out_and_counted(dataset, tmp_path):
    bad = [[np.nan, 0, 5, 5], [0, 0, np.inf, 5], [20, 0, 30, 5], [5, 5, 5, 9], [9, 9, 2, 2], [0, 0, 1, 1], [0, 0, 2, 2]]
    scores = [9, 9, 9, 9, 9, np.nan, 1]
    path = npz(tmp_path / "given.npz", {7: (bad, scores), 1: ([], []), 2: ([[0, 0, 1, 1]], [1])})
    given = with_proposals(dataset, path, 10)
    np.testing.assert_array_equal(given.records[0].proposals.boxes, [[0, 0, 2, 2]])
    assert given.records[1].proposals.boxes.shape == (0, 4)
    assert dict(given.problems - dataset.problems) == {
        "proposals that are not finite, left out": 3,
        "proposals without area in their image, left out": 3,
        "images without proposals": 1,
        "images in the file of proposals that the split does not have": 2,
    }
    assert all(str(path) in line for line in given.describe_problems() if "proposals" in line)


class Malice:
    def __reduce__(self):
        return os.system, ("touch malice",)


def test_other_files_are_refused_in_a_sentence(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given"
    assert "there is no such file of proposals" in refused(dataset, path)
    assert "is a folder" in refused(dataset, tmp_path)
    path.write_text('{"boxes": []}')
    assert "is no file of proposals that can be read, which are the .npz" in refused(dataset, path)
    path.write_bytes(whole(tmp_path / "whole.npz").read_bytes()[:-40])
    assert "is damaged or was not written to its end" in refused(dataset, path)
    path.write_bytes(pickled(tmp_path / "whole.pkl").read_bytes()[:-40])
    assert "is damaged or was not written to its end" in refused(dataset, path)
    saved(path, image_ids=[7], boxes=np.zeros((1, 4)))
    assert "lacks counts, scores; an .npz of proposals has image_ids, counts, boxes, scores" in refused(dataset, path)
    for change in (
        {"counts": [3]},
        {"counts": [-1]},
        {"counts": [2**63 + 1]},
        {"counts": [2.0]},
        {"image_ids": [[7]]},
        {"scores": [1.0]},
    ):
        arrays = {"image_ids": [7], "counts": [2], "boxes": np.zeros((2, 4)), "scores": np.zeros(2)} | change
        saved(path, **arrays)
        assert "which do not belong together" in refused(dataset, path)
    assert "lacks ids or indexes" in refused(dataset, pickled(path, ids=None))
    assert "has 1 boxes and 2 scores of 2 images" in refused(dataset, pickled(path, boxes=[np.zeros((3, 4))]))
    assert "bbox_mode 4; write them as corners" in refused(dataset, pickled(path, bbox_mode=4))
    assert "has the proposals of an image twice" in refused(dataset, pickled(path, ids=[7, "7"]))
    assert "has the image id 'seven', which is no whole number" in refused(dataset, pickled(path, ids=["seven", 3]))
    shapes = [np.zeros((3, 5)), np.zeros((1, 4))]
    assert "has boxes float64 [3, 5] and scores float32 [3] of image 7" in refused(dataset, pickled(path, boxes=shapes))
    assert "has no proposals of the 2 images of" in refused(dataset, npz(path, {9: ([[0, 0, 1, 1]], [1])}))
    malice = refused(dataset, pickled(path, boxes=[Malice(), Malice()]))
    assert "asks for posix.system, which could run code and is refused; save lists and arrays of NumPy" in malice
    assert not (tmp_path / "malice").exists()


def test_lists_in_a_pickle_are_numbers_and_no_larger_than_they_look(dataset, tmp_path):
    path = tmp_path / "lists.pkl"
    as_lists = [[[float(value) for value in box] for box in boxes] for boxes in BOXES.values()]
    listed = found_in(dataset, pickled(path, boxes=as_lists, objectness_logits=[list(SCORES[key]) for key in BOXES]))
    arrays = found_in(dataset, whole(tmp_path / "arrays.npz"))
    for image_id, found in listed.items():
        np.testing.assert_array_equal(found.boxes, arrays[image_id].boxes)
    nested: object = [1.0] * 10
    for _ in range(12):
        nested = [nested] * 10  # ten names of one list each: a few hundred bytes for 10^13 numbers
    refused(dataset, pickled(path, boxes=[nested] * len(BOXES)))
    refused(dataset, pickled(path, ids=[nested] * len(BOXES)))


def test_no_images_are_written_and_read(tmp_path):
    path = tmp_path / "none.npz"
    with path.open("wb") as file:
        write_proposals(file, [])
    assert not read_proposals(path).rows


def records_or_refusal(dataset, path):
    try:
        return with_proposals(dataset, path, 10).records
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("form", ["npz", "pkl"])
def test_mutants_are_proposals_or_refused(form, dataset, tmp_path):
    path, rng, taken = tmp_path / f"given.{form}", random.Random(0), 0
    source = (whole if form == "npz" else pickled)(path).read_bytes()
    for _ in range(300):
        path.write_bytes(mutant([source], rng))
        found = records_or_refusal(dataset, path)
        if isinstance(found, str):
            assert str(path) in found
            continue
        taken += 1
        for record in found:
            boxes = record.proposals.boxes
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert ((boxes >= 0) & (boxes <= [16, 12, 16, 12])).all()
            assert (np.diff(record.proposals.scores) <= 0).all()
    assert 0 < taken < 300


def test_ids_that_repeat_cannot_be_told_apart(dataset, tmp_path):
    mixed = replace(dataset, records=(*dataset.records, *dataset.records))
    assert "has image ids that repeat, as in a mixture" in refused(mixed, whole(tmp_path / "given.npz"))


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_a_configuration_of_before_has_none(tmp_path):
    tree = to_json(DataConfig(CocoConfig()))
    del tree["proposals"]
    assert from_json(DataConfig, tree).proposals is None


def test_files_go_by_split(dataset, tmp_path):
    whole(tmp_path / "of_train.npz")
    files = ProposalFilesConfig(str(tmp_path / "of_{split}.npz"), str(tmp_path / "other.npz"))
    config = DataConfig(CocoConfig(str(tmp_path / "data")), proposals=files)
    assert len(load_split(config, "train").records[0].proposals.boxes) == 3
    config = replace(config, source=replace(config.source, train_split="other"))
    with pytest.raises(UserError, match=r"other\.npz: there is no such file"):
        load_split(config, "train")
    assert load_split(replace(config, proposals=None), "train").records[0].proposals is None


def test_nothing_is_proposed_for_what_is_pasted():
    with pytest.raises(ValueError, match="copy_paste pastes instances for which nothing was proposed"):
        DataConfig(copy_paste=0.5, proposals=ProposalFilesConfig())


def test_fingerprints_tell_proposals_apart(dataset, tmp_path):
    prints = {fingerprint(with_proposals(dataset, whole(tmp_path / "given.npz"), slots)) for slots in (3, 4, 2)}
    assert len(prints | {fingerprint(dataset)}) == 3  # of three proposals there are no four
    given = with_proposals(dataset, whole(tmp_path / "given.npz"), 3)
    assert fingerprint(given, with_proposals=False) == fingerprint(dataset)


# --- Augmentation and batches -----------------------------------------------------------------------------------------

PLAIN = DataConfig(CocoConfig(), short_side=(90,), max_side=200, short_side_eval=90, canvas=(128, 128), flip=0.0)
AUGMENTATIONS = {
    "none": {},
    "flips and turns": {"flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5},
    "half-turns": {"rotate90": 0.5, "canvas": (128, 160)},
    "crops": {"crop": (70, 60), "short_side": (60, 75, 100), "flip": 0.5},
    "jitter": {"large_scale_jitter": LargeScaleJitterConfig(0.1, 4.0), "flip": 0.5, "rotate90": 0.5},
}


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    """Images whose instances are rectangles, and the same with those as proposals, the last one first."""
    root = tmp_path_factory.mktemp("rectangles")
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(3)]
    annotations, given = [], {}
    for i in range(3):
        corners = rng.uniform(0, [8, 6], (5, 2))
        sides = rng.uniform(1, [8, 6], (5, 2))
        annotations += [
            annotation(id=10 * i + j, image_id=i, bbox=box)
            for j, box in enumerate(np.hstack([corners, sides]).tolist())
        ]
        given[i] = np.hstack([corners, corners + sides])[::-1], np.arange(5)[::-1]
    source = replace(write_dataset(root / "data", annotations, images), boxes_only=True)
    dataset = load_coco(source, "train")
    return dataset, with_proposals(dataset, npz(root / "given.npz", given), 9)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_proposals_follow_the_image_as_its_boxes_do(augmentation, rectangles):
    config = replace(PLAIN, **AUGMENTATIONS[augmentation])
    counts = set()
    for seed in range(30):
        plain, given = (
            training_sample(dataset.records[seed % 3], config, np.random.default_rng(seed)) for dataset in rectangles
        )
        np.testing.assert_array_equal(given.image, plain.image)
        np.testing.assert_array_equal(given.boxes, plain.boxes)
        assert plain.proposals is None
        order = np.argsort(-given.proposals.scores, kind="stable")
        np.testing.assert_array_equal(order, np.arange(len(order)))
        assert (given.proposals.boxes[:, 2:] > given.proposals.boxes[:, :2]).all()
        # Instances stay in the order of the file, whose last one has the lowest score.
        assert len(given.boxes) == len(given.proposals.boxes)
        np.testing.assert_allclose(given.proposals.boxes[::-1], given.boxes, atol=0.02)
        counts.add(len(given.boxes))
    assert (min(counts) < 5) == (augmentation in ("crops", "jitter"))


def test_the_best_fill_the_slots_there_are(rectangles):
    _, dataset = rectangles
    config = replace(PLAIN, num_workers=0)
    few = replace(config, proposals=ProposalFilesConfig(slots=1))
    batch = next(train_batches(dataset, few, 1, 0, range(1)))
    assert batch.inputs.proposals.valid.tolist() == [[True]]
    with pytest.raises(UserError, match=r"the dataset has proposals and data\.proposals is none"):
        next(train_batches(dataset, config, 1, 0, range(1)))


def test_batches_have_slots_of_proposals(rectangles):
    config = replace(PLAIN, proposals=ProposalFilesConfig(slots=9), flip=0.5, max_instances=5, num_workers=0)
    batches = [list(train_batches(dataset, config, 2, 3, range(2))) for dataset in rectangles]
    for plain, given in zip(*batches, strict=True):
        assert plain.inputs.proposals is None
        found, truth = given.inputs.proposals, given.inputs.ground_truth
        np.testing.assert_array_equal(given.inputs.images, plain.inputs.images)
        np.testing.assert_array_equal(found.valid, np.arange(9) < [[5], [5]])
        np.testing.assert_allclose(found.boxes[:, 4::-1], truth.boxes, atol=1e-4)
        np.testing.assert_array_equal(found.logits[:, :5], [np.arange(5)[::-1]] * 2)
        assert not found.boxes[:, 5:].any()
        assert not found.logits[:, 5:].any()


def test_other_processes_are_sent_where_they_lie(rectangles):
    dataset = rectangles[1]
    message = pickle.dumps(dataset.records)
    assert len(message) < 10_000
    for sent, record in zip(pickle.loads(message), dataset.records, strict=True):
        np.testing.assert_array_equal(sent.proposals.boxes, record.proposals.boxes)
        np.testing.assert_array_equal(sent.proposals.scores, record.proposals.scores)


def test_batches_to_evaluate_have_them_in_resized_pixels(rectangles):
    dataset = rectangles[1]
    config = replace(PLAIN, proposals=ProposalFilesConfig(slots=9), broken_images="skip")
    (batch,) = list(eval_batches(dataset, config, 4, multiple=4))
    np.testing.assert_array_equal(batch.proposals.valid.sum(axis=1), [5, 5, 5, 0])
    for row, record in enumerate(dataset.records):
        stretch = np.tile(batch.image_sizes[row, ::-1] / [record.width, record.height], 2)
        np.testing.assert_allclose(batch.proposals.boxes[row, :5], record.proposals.boxes * stretch, rtol=1e-5)
    (batch,) = list(eval_batches(rectangles[0], config, 4))
    assert batch.proposals is None


def test_a_source_in_python_takes_them_too(tmp_path, dataset):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    content["images"] = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in (7, 3)]
    made = coco_dataset(content, "made", tmp_path / "data" / "train")
    assert len(with_proposals(made, whole(tmp_path / "given.npz"), 9).records[0].proposals.scores) == 3
