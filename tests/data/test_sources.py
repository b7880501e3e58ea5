"""Sources beside COCO directories: boxes alone, mixtures, LVIS, and folders of plain images."""

import json

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.config import from_json, to_json
from mask_rcnn_jax.data import (
    CocoConfig,
    DataConfig,
    LvisConfig,
    MixtureConfig,
    ShapesConfig,
    eval_batches,
    image_folder,
    train_batches,
)
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import SQUARE, annotation, write_dataset
from tests.data.same_records import assert_same_records

SMALL = DataConfig(CocoConfig(), (12,), 12, 64, (64, 64), num_workers=0)


def test_boxes_without_masks_are_told_of_and_can_be_kept(tmp_path):
    config = write_dataset(tmp_path, [annotation(segmentation=None), annotation(id=2, image_id=3)])
    dataset = config.load("train")
    assert len(dataset.records[0].boxes) == 0
    assert any("data.source.boxes_only=true keeps their boxes" in line for line in dataset.describe_problems())

    kept = CocoConfig(config.root, boxes_only=True).load("train")
    assert kept.boxes_only
    assert not kept.problems
    for record in kept.records:
        np.testing.assert_array_equal(record.boxes, [[2, 2, 10, 10]])
        np.testing.assert_array_equal(record.segmentations[0], SQUARE)
    batch = next(train_batches(kept, SMALL, 2, 0, range(1)))
    assert (batch.inputs.ground_truth.masks[:, 0] == 255).all()  # all of the box


def other_categories(*names):
    return [{"id": 30 + i, "name": name} for i, name in enumerate(names)]


def test_a_mixture_matches_classes_by_name(tmp_path):
    first = write_dataset(tmp_path / "first", [annotation(), annotation(id=2, category_id=10, image_id=3)])
    crowd = annotation(id=5, category_id=31, image_id=3, iscrowd=1, segmentation={"size": [12, 16], "counts": [8, 184]})
    # Here "b" has the lower id, and so the lower class.
    second = write_dataset(
        tmp_path / "second", [annotation(category_id=30), crowd], categories=other_categories("b", "a")
    )
    mixed = MixtureConfig((first, second), (1.0, 3.0)).load("train")
    one, two = first.load("train"), second.load("train")
    assert (mixed.categories, mixed.class_names, mixed.weights) == ((10, 20), ("a", "b"), (1.0, 3.0))
    assert_same_records(mixed.records[:2], one.records)
    assert_same_records(mixed.records[2:], two.records, ignore={"classes", "source"})
    names = [[mixed.class_names[k] for k in record.classes] for record in mixed.records]
    assert names == [["b"], ["a"], ["b"], ["a"]]
    assert [record.source for record in mixed.records] == [0, 0, 1, 1]
    # Of the second source only the first image has more than a crowd: it makes up three quarters.
    batches = train_batches(mixed, SMALL, 4, 0, range(12))
    shown = np.concatenate([batch.inputs.ground_truth.classes[:, 0] * 1000 + batch.image_ids for batch in batches])
    assert len(shown) == 48
    assert np.unique(shown).tolist() == [3, 1007]


def test_a_mixture_trains_on_all_and_validates_on_the_first(tmp_path):
    shapes = [
        ShapesConfig(str(tmp_path / name), num_train=n, num_val=2, image_size=64) for name, n in (("a", 4), ("b", 3))
    ]
    config = MixtureConfig(tuple(shapes))
    config.prepare()
    assert len(config.load(config.train_split).records) == 7
    assert_same_records(config.load(config.val_split).records, shapes[0].load("val").records)
    with pytest.raises(UserError, match="splits train and val, not 'test'"):
        config.load("test")
    with pytest.raises(UserError, match="mixes no sources"):
        MixtureConfig().load("train")
    with pytest.raises(ValueError, match="a mixture holds no mixtures"):
        MixtureConfig((shapes[0], config))
    with pytest.raises(ValueError, match="one for each of 2 sources"):
        MixtureConfig(tuple(shapes), (1.0,))
    with pytest.raises(UserError, match=r"weights\[1\] must be above 0, not 0\.0"):
        MixtureConfig(tuple(shapes), (1.0, 0.0))
    data = DataConfig(config)
    assert from_json(DataConfig, json.loads(json.dumps(to_json(data)))) == data


def test_sources_with_other_classes_are_not_mixed(tmp_path):
    first = write_dataset(tmp_path / "first", [annotation()])
    for name, names, message in [
        ("fewer", ("a",), "lacks the classes b of"),
        ("more", ("a", "b", "c"), "lacks the classes c of"),
        ("twice", ("a", "b", "b"), "names a class twice"),
    ]:
        categories = other_categories(*names)
        other = write_dataset(tmp_path / name, [annotation(category_id=30)], categories=categories)
        with pytest.raises(UserError, match=message):
            MixtureConfig((first, other)).load("train")


def test_rare_classes_are_repeated(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in range(16)]
    annotations = [annotation(id=i, image_id=i, category_id=10 if i == 0 else 20) for i in range(16)]
    dataset = write_dataset(tmp_path, annotations, images=images).load("train")
    # In 1 of 16 images: sqrt(0.25 / (1 / 16)) = 2 of the 17 images of an epoch.
    config = DataConfig(CocoConfig(), (12,), 12, 64, (64, 64), repeat_threshold=0.25, num_workers=0)
    ids = np.concatenate([batch.image_ids for batch in train_batches(dataset, config, 17, 0, range(6))])
    np.testing.assert_array_equal(np.bincount(ids), [12] + [6] * 15)


def lvis_content():
    image = {"id": 5, "height": 12, "width": 16, "not_exhaustive_category_ids": [], "neg_category_ids": [2]}
    return {
        "images": [image | {"coco_url": "http://images.cocodataset.org/train2017/000000000005.jpg"}],
        "annotations": [
            {"id": 9, "image_id": 5, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 60.5, "segmentation": SQUARE}
        ],
        "categories": [{"id": 1, "name": "acorn", "frequency": "r"}, {"id": 2, "name": "zebra", "frequency": "f"}],
    }


def test_lvis_finds_images_by_their_address(tmp_path):
    config = LvisConfig(str(tmp_path))
    content = lvis_content()
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train2017/000000000005\.jpg does not exist"):
        config.load("val")
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", (16, 12)).save(tmp_path / "train2017" / "000000000005.jpg")
    dataset = config.load("val")
    (record,) = dataset.records
    assert (record.image_id, record.classes.tolist(), record.annotation_ids.tolist()) == (5, [0], [9])
    assert record.areas.tolist() == [60.5]
    assert (record.federated.absent.tolist(), record.federated.not_exhaustive.tolist()) == ([1], [])
    assert dataset.frequencies == ("r", "f")
    assert next(train_batches(dataset, SMALL, 1, 0, range(1))).inputs.ground_truth.valid.sum() == 1

    del content["images"][0]["neg_category_ids"]
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has no 'neg_category_ids'"):
        config.load("val")
    content = lvis_content()
    del content["categories"][1]["frequency"]
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"Category 2 \(categories\[1\]\) .* has no 'frequency'"):
        config.load("val")


def test_a_folder_of_images(tmp_path):
    (tmp_path / "b" / "deeper").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (16, 12)).save(tmp_path / "b" / "deeper" / "1.png")
    Image.new("RGB", (16, 12)).save(tmp_path / "b" / "0.jpg", exif=turned)
    Image.new("L", (8, 4)).save(tmp_path / "a.JPG", format="jpeg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "spoilt.png").write_bytes(b"spoilt")
    dataset = image_folder(tmp_path)
    assert [record.path for record in dataset.records] == [
        str(tmp_path / name) for name in ("a.JPG", "b/0.jpg", "b/deeper/1.png")
    ]
    assert [(record.height, record.width) for record in dataset.records] == [(4, 8), (16, 12), (12, 16)]
    assert [record.image_id for record in dataset.records] == [1, 2, 3]
    assert dataset.problems.total() == 1
    assert "spoilt.png" in dataset.describe_problems()[0]
    batches = list(eval_batches(dataset, SMALL, 2))
    assert sum(batch.valid.sum() for batch in batches) == 3

    (single,) = image_folder(tmp_path / "a.JPG").records
    assert single.path == str(tmp_path / "a.JPG")
    for path in (tmp_path / "nowhere", tmp_path / "spoilt.png"):
        with pytest.raises(UserError, match=path.name):
            image_folder(path)


def test_rles_of_a_mixture_stay_whole(shared):
    source = CocoConfig(str(shared / "data" / "nuclei"), val_split="val")
    mixed = MixtureConfig((CocoConfig(source.root, "val"), CocoConfig(source.root, "val"))).load("train")
    alone = source.load("val")
    assert_same_records(mixed.records[: len(alone.records)], alone.records)
    assert_same_records(mixed.records[len(alone.records) :], alone.records, ignore={"source"})
