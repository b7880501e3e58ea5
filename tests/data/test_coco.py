"""Reading COCO directories: real ones agree with pycocotools, spoilt ones are refused or counted."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import CocoConfig, load_coco, verify_images
from mask_rcnn_jax.errors import UserError
from tests.data.coco_files import SQUARE, annotation, write_dataset


def test_reads_ids_as_they_come(tmp_path):
    crowd = {"size": [12, 16], "counts": [12 * 8, 12, 12 * 7]}
    config = write_dataset(
        tmp_path,
        [
            annotation(id=5, image_id=3, area=60.0),
            annotation(id=9, image_id=3, category_id=10, segmentation=crowd, iscrowd=1, bbox=[8, 0, 1, 12]),
            annotation(id=2, bbox=[10, -2, 20, 6]),
        ],
    )
    dataset = load_coco(config, "train")
    assert dataset.categories == (10, 20)
    assert dataset.class_names == ("a", "b")
    assert not dataset.problems
    first, second = dataset.records
    assert (first.image_id, second.image_id) == (7, 3)
    np.testing.assert_array_equal(first.boxes, [[10, 0, 16, 4]])  # clipped to the image
    np.testing.assert_array_equal(second.classes, [1, 0])
    np.testing.assert_array_equal(second.iscrowd, [False, True])
    np.testing.assert_array_equal(second.areas, [60, 12])
    np.testing.assert_array_equal(second.annotation_ids, [5, 9])
    assert coco_mask.area(second.segmentations[1]) == 12


@pytest.mark.parametrize("layout", ["images/train2017", "train2017"])
def test_image_directories(tmp_path, layout):
    config = write_dataset(tmp_path, [annotation()], split="train2017")
    target = tmp_path / layout
    target.parent.mkdir(exist_ok=True)
    (tmp_path / "train2017").rename(target)
    assert load_coco(config, "train2017").records[0].path == str(target / "7.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 99}, r"Annotation 1 .*unknown category_id 99"),
        ({"image_id": 99}, r"Annotation 1 .*unknown image_id 99"),
        ({"bbox": None}, r"Annotation 1 .*no 'bbox'"),
        ({"category_id": None}, r"Annotation 1 .*no 'category_id'"),
    ],
)
def test_annotations_that_stop_a_run(tmp_path, changes, message):
    config = write_dataset(tmp_path, [annotation(**changes)])
    with pytest.raises(UserError, match=message):
        load_coco(config, "train")


RLE = {"size": [12, 16], "counts": [20, 5, 167]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bbox": [2, 2, 0, 8]}, "box of no area"),
        ({"bbox": [2, 2, -3, 8]}, "box of no area"),
        ({"bbox": [20, 2, 8, 8]}, "box of no area"),
        ({"bbox": [float("nan"), 2, 8, 8]}, "box of no area"),
        ({"bbox": []}, "box of no area"),
        ({"segmentation": []}, "without a usable polygon"),
        ({"segmentation": None}, "without a usable polygon"),
        ({"segmentation": [[]]}, "fewer than 6 or an odd"),
        ({"segmentation": [[1, 1, 5, 5]]}, "fewer than 6 or an odd"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9, 3]]}, "fewer than 6 or an odd"),
        ({"segmentation": RLE | {"size": [16, 12]}}, "unusable RLE"),
        ({"segmentation": RLE | {"counts": [20, 5]}}, "unusable RLE"),
        ({"segmentation": RLE | {"counts": [192]}}, "unusable RLE"),
        ({"segmentation": RLE | {"counts": [-8, 200]}}, "unusable RLE"),
        ({"segmentation": RLE | {"counts": "~~garbage"}}, "unusable RLE"),
        ({"segmentation": {"size": [12, 16]}}, "unusable RLE"),
        ({"segmentation": RLE | {"size": None}}, "unusable RLE"),
        ({"segmentation": RLE | {"size": [2**40, 2**40]}}, "unusable RLE"),
        ({"segmentation": RLE | {"counts": [2**62, 2**62, 2**62, 2**62, 192]}}, "unusable RLE"),
        ({"segmentation": RLE | {"counts": [10**400]}}, "unusable RLE"),
        ({"segmentation": "text"}, "without a usable polygon"),
        ({"segmentation": 5}, "without a usable polygon"),
        ({"segmentation": [1, 1, 5, 5, 9, 9]}, "without a usable polygon"),
        ({"segmentation": [["1", "1", "5", "5", "9", "9"]]}, "fewer than 6 or an odd"),
        ({"segmentation": [[1, 1, 5, 5, 9, 10**400]]}, "fewer than 6 or an odd"),
        ({"segmentation": [{"x": 1}]}, "fewer than 6 or an odd"),
        ({"bbox": [10**400, 2, 8, 8]}, "box of no area"),
        ({"bbox": [2, 2, "8", 8]}, "box of no area"),
        ({"bbox": [2, 2, True, True]}, "box of no area"),
        ({"bbox": [2, 2, 1e-50, 8]}, "box of no area"),  # nothing of it is left in float32
    ],
)
def test_annotations_left_out_and_counted(tmp_path, changes, problem):
    bad = annotation(id=1, **changes)
    dataset = load_coco(write_dataset(tmp_path, [bad, annotation(id=2), annotation(id=3, image_id=3)]), "train")
    np.testing.assert_array_equal(dataset.records[0].annotation_ids, [2])
    lines = [line for line in dataset.describe_problems() if problem in line]
    assert len(lines) == 1
    assert "annotation 1" in lines[0]
    assert "instances_train.json: 1 " in lines[0]


@pytest.mark.parametrize("area", ["big", [], float("nan"), float("inf"), 10**400, True])
def test_areas_that_are_none(tmp_path, area):
    dataset = load_coco(write_dataset(tmp_path, [annotation(area=area)]), "train")
    assert dataset.records[0].areas.tolist() == [64]
    assert any("1 annotations with an area that is not a number" in line for line in dataset.describe_problems())


IMAGE = {"id": 7, "file_name": "7.png", "width": 16, "height": 12}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [annotation(), annotation(id="a1")]},
            r"a1 \(annotations\[1\]\).* id 'a1', .*number the",
        ),
        ({"annotations": [annotation(image_id="7")]}, r"annotations\[0\].* image_id '7', .*not a whole number"),
        ({"annotations": [annotation(category_id=[20])]}, r"annotations\[0\].* category_id \[20\]"),
        ({"annotations": [annotation(image_id={})]}, r"annotations\[0\].* image_id \{\}"),
        ({"annotations": [annotation(id=2**63)]}, r"annotations\[0\].* is not from"),
        ({"annotations": [annotation(id=True)]}, r"annotations\[0\].* id True"),
        ({"annotations": [annotation(id=1.5)]}, r"annotations\[0\].* id 1\.5"),
        (
            {"annotations": [annotation() | {"bbox": None}]},
            r"Annotation 1 \(annotations\[0\]\).* bbox null; write",
        ),
        ({"annotations": [annotation(bbox="2 2 8 8")]}, r"annotations\[0\].* bbox '2 2 8 8'"),
        ({"annotations": [annotation(iscrowd="no")]}, r"annotations\[0\].* iscrowd 'no'; write 0 or 1"),
        ({"annotations": [annotation(), 5]}, r"annotations\[1\] in .* is 5, not an object"),
        ({"annotations": [[annotation()]]}, r"annotations\[0\] in .* not an object"),
        ({"images": [IMAGE, None]}, r"images\[1\] in .* is null, not an object"),
        (
            {"images": [IMAGE | {"id": "7d4c-uuid"}]},
            r"images\[0\].* id '7d4c-uuid', which is not a whole",
        ),
        ({"images": [IMAGE | {"width": "16"}]}, r"images\[0\].* width '16'"),
        ({"images": [IMAGE | {"height": None}]}, r"images\[0\].* height null"),
        ({"images": [IMAGE | {"height": 0}]}, r"images\[0\].* height 0, which is not from 1"),
        ({"images": [IMAGE | {"height": 10**400}]}, r"images\[0\].* is not from 1"),
        ({"images": [IMAGE | {"height": 2**17, "width": 2**17}]}, r"images\[0\].* pixels, more than"),
        ({"images": [IMAGE | {"file_name": 7}]}, r"images\[0\].* file_name 7, which is not the name of a file"),
        ({"images": [IMAGE | {"file_name": "\0.png"}]}, r"images\[0\].* not the name of a file"),
        ({"images": [IMAGE | {"file_name": "\ud800"}]}, r"images\[0\].* not the name of a file"),
        ({"images": [IMAGE | {"file_name": "a" * 2000}]}, r"does not exist"),
        ({"images": [IMAGE | {"file_name": "../../none.png"}]}, r"none\.png does not exist"),
        ({"categories": [{"id": "cat", "name": "a"}]}, r"categories\[0\].* id 'cat'"),
        ({"categories": [{"id": 20, "name": None}]}, r"categories\[0\].* name null, which is not text"),
        ({"categories": [{"id": 20, "name": "\udc80"}]}, r"categories\[0\].* half a character"),
        ({"categories": ["cat"]}, r"categories\[0\] in .* is 'cat', not an object"),
        ({"categories": [{"id": 20, "name": "a", "keypoints": [["x"]]}]}, r"has the keypoints"),
        ({"images": {"7": IMAGE}}, "no list 'images'"),
    ],
)
def test_entries_of_other_types_are_named(tmp_path, changes, message):
    config = write_dataset(tmp_path, [])
    content = {"images": [IMAGE], "annotations": [annotation()], "categories": [{"id": 20, "name": "b"}]}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=message) as error:
        load_coco(config, "train")
    assert "instances_train.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    images = [IMAGE | {"id": 7.0, "width": 16.0}]
    entry = annotation(id=2.0, image_id=7, category_id=20.0, iscrowd=True)
    dataset = load_coco(write_dataset(tmp_path, [entry], images=images, categories=[{"id": 20, "name": 5}]), "train")
    (record,) = dataset.records
    assert (record.image_id, record.width, record.annotation_ids.tolist(), record.iscrowd.tolist()) == (
        7,
        16,
        [2],
        [True],
    )
    assert dataset.class_names == ("5",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b'{"images": "\xe9"}', "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"null", "no list 'images'"),
        (b'"images"', "no list 'images'"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, data, message):
    config = write_dataset(tmp_path, [])
    (tmp_path / "annotations" / "instances_train.json").write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_coco(config, "train")


def test_a_byte_order_mark_is_skipped(tmp_path):
    config = write_dataset(tmp_path, [annotation()])
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(load_coco(config, "train").records) == 2


def test_the_good_polygons_of_an_annotation_stay(tmp_path):
    dataset = load_coco(write_dataset(tmp_path, [annotation(segmentation=[[1, 1], *SQUARE])]), "train")
    assert len(dataset.records[0].segmentations[0]) == 1
    assert dataset.problems.total() == 2  # the polygon, and image 3 without annotations
    assert any("3.png" in line and "without annotations" in line for line in dataset.describe_problems())


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_coco(CocoConfig(str(tmp_path / "nowhere")), "train")
    config = write_dataset(tmp_path / "set", [annotation()])
    with pytest.raises(UserError, match=r"instances_val\.json does not exist"):
        load_coco(config, "val")
    (tmp_path / "set" / "train" / "3.png").unlink()
    with pytest.raises(UserError, match=r"3\.png does not exist"):
        load_coco(config, "train")
    (tmp_path / "set" / "train" / "7.png").unlink()
    with pytest.raises(UserError, match=r"7\.png and 1 more images do not exist"):
        load_coco(config, "train")
    (tmp_path / "set" / "train").rmdir()
    with pytest.raises(UserError, match=r"set/train does not exist"):
        load_coco(config, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "is not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "Image 1 .* no 'file_name'"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            r"Category 1 \(categories\[0\]\) .* no 'name'",
        ),
    ],
)
def test_spoilt_annotation_files(tmp_path, text, message):
    config = write_dataset(tmp_path, [annotation()])
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_coco(config, "train")


def test_repeated_ids_are_refused(tmp_path):
    image = {"id": 1, "file_name": "1.png", "width": 16, "height": 12}
    with pytest.raises(UserError, match=r"Image 1 \(images\[1\]\) .* occurs twice"):
        load_coco(write_dataset(tmp_path / "a", [], images=[image, image]), "train")
    names = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
    with pytest.raises(UserError, match=r"Category 1 \(categories\[1\]\) .* occurs twice"):
        load_coco(write_dataset(tmp_path / "b", [], categories=names), "train")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_verify_names_unreadable_images(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    images = [{"id": i, "file_name": f"{i}.{suffix}", "width": 64, "height": 48} for i in range(4)]
    dataset = load_coco(write_dataset(tmp_path, [], images=images), "train")
    for record in dataset.records:
        Image.fromarray(noise).save(record.path)
    verify_images(dataset)

    with open(dataset.records[1].path, "r+b") as file:
        file.truncate(len(noise.tobytes()) // 20)
    with pytest.raises(UserError, match=rf"1\.{suffix} cannot be read"):
        verify_images(dataset)
    Image.fromarray(noise[:40]).save(dataset.records[2].path)
    with pytest.raises(UserError, match="2 images in all"):
        verify_images(dataset)
    Image.fromarray(noise).save(dataset.records[1].path)
    with pytest.raises(UserError, match=rf"2\.{suffix} is 64 x 40 as displayed but annotated as 64 x 48"):
        verify_images(dataset)


def test_verify_takes_a_file_with_trailing_bytes(tmp_path):
    dataset = load_coco(write_dataset(tmp_path, []), "train")
    with open(dataset.records[0].path, "ab") as file:
        file.write(b"\0" * 100)
    verify_images(dataset)


def test_annotations_refer_to_the_image_as_displayed(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "width": 12, "height": 16}]
    dataset = load_coco(write_dataset(tmp_path, [], images=images), "train")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(dataset.records[0].path, exif=exif)
    verify_images(dataset)


@pytest.mark.parametrize(
    ("name", "images", "annotations"),
    [("nuclei", 99, 3991), ("coco_mini", 103, 866), ("coco_person_kp", 115, 155), ("balloon", 13, 50)],
)
def test_real_sets_are_read_whole(shared, name, images, annotations):
    """Counts of shared/data/README.md."""
    dataset = load_coco(CocoConfig(str(shared / "data" / name)), "val")
    verify_images(dataset)
    assert len(dataset.records) == images
    assert sum(len(record.boxes) for record in dataset.records) == annotations
    for record in dataset.records:
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert (record.boxes >= 0).all()
        assert (record.boxes <= np.array([record.width, record.height] * 2)).all()
