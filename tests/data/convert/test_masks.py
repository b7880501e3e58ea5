"""Cityscapes and id masks: the objects are the pixels that were numbered."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.convert.known import HEIGHT, WIDTH, block, convert, load, masks, named, write_image, write_mask

CAR, GROUP_OF_PERSONS, ROAD = block(10, 20, 40, 50), block(0, 60, 20, 80), block(40, 0, 60, 80)


def write_cityscapes(root, split="train", city="aachen", stem="aachen_000000_000019"):
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[ROAD] = 7
    ids[CAR] = 26001
    ids[15:35, 25:30] = 24000  # a person in front of the car
    ids[GROUP_OF_PERSONS] = 24
    ids[50:60, 0:10] = 29000  # a caravan: has instances, is not evaluated
    mask = write_mask(root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", ids)
    image = write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
    return ids, mask, image


def test_cityscapes(tmp_path):
    root, out = tmp_path / "cityscapes", tmp_path / "out"
    ids, _, image = write_cityscapes(root)
    write_cityscapes(root, "val", "bochum", "bochum_000000_000313")
    write_cityscapes(root, "test", "bonn", "bonn_000000_000019")
    assert convert("cityscapes", root, "--out", out) == 0
    assert not (out / "test").exists()
    assert load(out, "val").records[0].path.endswith("bochum/bochum_000000_000313_leftImg8bit.png")
    dataset = load(out)
    # Cityscapes' own ids of the eight classes with instances that its benchmark scores.
    assert dict(zip(dataset.class_names, dataset.categories, strict=True)) == {
        "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip
    (record,) = dataset.records
    assert record.path == str(out / "train" / "aachen" / image.name)
    found = dict(zip(named(dataset, record), masks(record), strict=False))
    assert named(dataset, record) == ["person", "person", "car"]
    np.testing.assert_array_equal(record.iscrowd, [True, False, False])
    for mask, value in zip(masks(record), (24, 24000, 26001), strict=True):
        np.testing.assert_array_equal(mask, ids == value)
    np.testing.assert_array_equal(record.areas, [(ids == value).sum() for value in (24, 24000, 26001)])
    np.testing.assert_array_equal(record.boxes[2], [20, 10, 50, 40])
    assert found["car"].sum() == 30 * 30 - 20 * 5


def test_cityscapes_says_what_it_leaves_out(tmp_path, capsys):
    root, out = tmp_path / "cityscapes", tmp_path / "out"
    write_cityscapes(root)
    write_cityscapes(root, stem="a_1")[2].unlink()
    write_image(write_cityscapes(root, stem="a_2")[2], 50, WIDTH)
    write_cityscapes(root, stem="a_3")[1].write_bytes(b"no image")
    write_cityscapes(root, stem="a_4")[2].write_bytes(b"")
    assert convert("cityscapes", root, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "train: 1 images, 2 objects, 1 crowds" in printed
    for kind, name in (
        ("images that do not exist", "a_1_leftImg8bit.png"),
        ("masks that are not of their image's size", "a_2_gtFine_instanceIds.png: 80 x 60, its image 80 x 50"),
        ("masks that cannot be read", "a_3_gtFine_instanceIds.png"),
        ("images that cannot be read", "a_4_leftImg8bit.png"),
    ):
        assert f"1 {kind}, left out:\n  {root}" in printed
        assert name in printed


def write_voc(root):
    """Two objects that overlap the void outline, one of two classes; a horse is class 13, a person 15."""
    objects, classes = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    objects[10:30, 10:40], classes[10:30, 10:40] = 1, 13
    objects[30:50, 10:20], classes[30:50, 10:20] = 2, 15
    classes[30:32, 10:20] = 13  # a fifth of the second object: the rest decides
    objects[10, 10:40] = classes[10, 10:40] = 255
    objects[0:5, 70:80] = 3  # no class
    for stem in ("2007_000001", "2007_000002"):
        for folder, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
            path = root / folder / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(values).convert("P")
            picture.putpalette(bytes(range(256)) * 3)
            picture.putdata(values.ravel().tolist())
            picture.save(path)
        write_image(root / "JPEGImages" / f"{stem}.jpg")
    write_image(root / "JPEGImages" / "not_segmented.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n")
    (lists / "trainval.txt").write_text("2007_000001\n2007_000002\n")
    return objects


def test_voc(tmp_path, capsys):
    root, out = tmp_path / "VOC2012", tmp_path / "out"
    objects = write_voc(root)
    assert convert("id-masks", root, "--out", out) == 0
    assert [path.name for path in sorted(out.iterdir())] == ["annotations", "train", "val"]
    dataset = load(out, "val")
    assert len(dataset.class_names) == 20
    assert dataset.class_names[::19] == ("aeroplane", "tvmonitor")
    (record,) = dataset.records
    assert named(dataset, record) == ["horse", "person"]
    for mask, value in zip(masks(record), (1, 2), strict=True):
        np.testing.assert_array_equal(mask, objects == value)
    np.testing.assert_array_equal(record.boxes, [[10, 11, 40, 30], [10, 30, 20, 50]])
    printed = capsys.readouterr().out
    assert "2 objects of several classes, given that of most pixels" in printed
    assert "2 objects without a class, left out" in printed
    assert "2007_000002.png, object 3" in printed


def test_voc_without_classes(tmp_path):
    root, out = tmp_path / "voc", tmp_path / "out"
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[5:10, 5:10], ids[20:30, 20:30] = 1, 255
    write_mask(root / "SegmentationObject" / "a.png", ids)
    write_image(root / "JPEGImages" / "a.jpg")
    assert convert("id-masks", root, "--out", out, "--class-name", "cell", "--split", "all") == 0
    dataset = load(out, "all")
    assert dataset.class_names == ("cell",)
    np.testing.assert_array_equal(masks(dataset.records[0])[0], ids == 1)
    assert convert("id-masks", root, "--out", out, "--class-name", "cell", "--overwrite", "--void", 7) == 0
    assert len(load(out).records[0].boxes) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_penn_fudan(tmp_path, dtype):
    root, out = tmp_path / "PennFudanPed", tmp_path / "out"
    ids = np.zeros((HEIGHT, WIDTH), dtype)
    ids[5:40, 5:20], ids[10:50, 30:45], ids[0:3, 0:3] = 1, 2, 255
    for index in range(4):
        write_image(root / "PNGImages" / f"FudanPed0000{index}.png")
        write_mask(root / "PedMasks" / f"FudanPed0000{index}_mask.png", ids)
    assert convert("id-masks", root, "--out", out, "--class-name", "pedestrian", "--val-share", "0.25") == 0
    train, val = load(out), load(out, "val")
    assert (len(train.records), len(val.records)) == (3, 1)
    assert train.class_names == val.class_names == ("pedestrian",)
    record = val.records[0]
    for mask, value in zip(masks(record), (1, 2, 255), strict=True):
        np.testing.assert_array_equal(mask, ids == value)


def test_folders_of_other_names(tmp_path):
    root, out = tmp_path / "set", tmp_path / "out"
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[5:40, 5:20] = 1
    write_image(root / "raw" / "a.jpg")
    write_mask(root / "labels" / "a.png", ids)
    assert convert("id-masks", root, "--out", out, "--images-dir", "raw", "--masks-dir", "labels") == 0
    np.testing.assert_array_equal(masks(load(out).records[0])[0], ids == 1)


def test_masks_in_colour_are_refused(tmp_path, capsys):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "masks" / "a.png")
    assert convert("id-masks", tmp_path, "--out", tmp_path / "out") == 2
    assert "masks that hold colours and not ids" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("format_", "message"),
    [("cityscapes", "gtFine does not exist"), ("id-masks", "holds neither SegmentationObject nor")],
)
def test_folders_laid_out_otherwise(tmp_path, capsys, format_, message):
    (tmp_path / "in").mkdir()
    assert convert(format_, tmp_path / "in", "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_annotations_are_compressed_rle(tmp_path):
    write_cityscapes(tmp_path)
    assert convert("cityscapes", tmp_path, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    for annotation in content["annotations"]:
        assert annotation["segmentation"]["size"] == [HEIGHT, WIDTH]
        assert isinstance(annotation["segmentation"]["counts"], str)
