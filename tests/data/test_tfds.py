"""ArrayRecord shards: written without TensorFlow, read through tfds, and the same records bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.data import (
    CocoConfig,
    DataConfig,
    ShapesConfig,
    TfdsConfig,
    build_tfds,
    read_image,
    train_batches,
    verify_images,
)
from mask_rcnn_jax.data.sources import tfds as tfds_source
from mask_rcnn_jax.data.sources import tfds_builder
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.visualize import write_pictures
from tests.data.coco_files import annotation, write_dataset
from tests.data.same_records import assert_same_records

tfds = pytest.importorskip("tensorflow_datasets")

pytestmark = [
    # etils, by which tfds reads files.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:etils.*"),
]

ENTRY = json.dumps({"id": 7, "file_name": "7.png", "width": 16, "height": 12})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A directory of shapes and the folder of its shards, "shapes"."""
    folder = tmp_path_factory.mktemp("tfds")
    config = ShapesConfig(str(folder / "coco"), num_train=12, num_val=4, image_size=64)
    config.prepare()
    source = CocoConfig(config.root)
    build_tfds(source, folder / "shards", "shapes", ["train", "val"])
    return source, folder / "shards"


def assert_round_trip(source, data_dir, name, split):
    expected = source.load(split)
    config = TfdsConfig(str(data_dir), name, boxes_only=source.boxes_only)
    found = config.load(split)
    for field in ("categories", "class_names", "keypoint_names", "skeleton", "problems"):
        assert getattr(found, field) == getattr(expected, field)
    assert_same_records(found.records, expected.records, ignore={"path"})
    examples = tfds.data_source(
        f"{name}/examples", data_dir=data_dir, split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    content = json.loads(expected.annotation_file.read_text())
    assert [json.loads(example["entry"]) for example in examples] == content["images"]
    annotations = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        annotations[entry["image_id"]].append(entry)
    assert [json.loads(example["annotations"]) for example in examples] == [*annotations.values()]
    for example, record in zip(examples, expected.records, strict=True):
        with open(record.path, "rb") as file:
            assert example["image"] == file.read()


@pytest.mark.parametrize("split", ["train", "val"])
def test_shapes_come_back(shapes, split):
    source, data_dir = shapes
    assert_round_trip(source, data_dir, "shapes", split)
    assert_round_trip(replace(source, boxes_only=True), data_dir, "shapes", split)


@pytest.mark.parametrize("name", ["coco_mini", pytest.param("nuclei", marks=pytest.mark.slow), "coco_person_kp"])
def test_real_data_comes_back(shared, tmp_path, name):
    source = CocoConfig(str(shared / "data" / name))
    build_tfds(source, tmp_path, name, ["train", "val"])
    for split in ("train", "val"):
        assert_round_trip(source, tmp_path, name, split)


def test_cocos_own_layout_and_names(tmp_path):
    bad = [annotation(), annotation(id=2, bbox=[0, 0, 0, 0]), annotation(id=3, segmentation=[[0.1, 1e-17, 7, 8, 1, 5]])]
    write_dataset(tmp_path / "coco", bad, split="train2017")
    write_dataset(tmp_path / "other", [annotation()], split="val2017")
    shutil.copytree(tmp_path / "other", tmp_path / "coco", dirs_exist_ok=True)
    source = CocoConfig(str(tmp_path / "coco"), "train2017", "val2017")
    build_tfds(source, tmp_path / "shards", "coco", ["train2017", "val2017"])
    for split in ("train2017", "val2017"):
        assert_round_trip(source, tmp_path / "shards", "coco", split)
    assert TfdsConfig(str(tmp_path / "shards")).load("train2017").problems


def test_batches_from_shards_are_those_from_files(shapes):
    source, data_dir = shapes
    config = DataConfig(source, (64,), 64, 64, (64, 64), num_workers=0)
    files = source.load("train")
    shards = verify_images(TfdsConfig(str(data_dir), "shapes").load("train"), config)
    expected = list(train_batches(files, config, 2, 0, range(6)))
    for workers in (0, 2):
        batches = train_batches(shards, replace(config, num_workers=workers), 2, 0, range(6))
        for batch, other in zip(batches, expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_any_program_decodes_the_images(shapes):
    source, data_dir = shapes
    examples = tfds.data_source("shapes/examples", data_dir=data_dir, split="val")
    for example, record in zip(examples, source.load("val").records, strict=True):
        np.testing.assert_array_equal(example["image"], read_image(record.path))


def test_tensorflow_is_not_imported(shapes, tmp_path):
    source, _ = shapes
    code = (
        "import sys; import mask_rcnn_jax.data as data; from mask_rcnn_jax.data import CocoConfig, TfdsConfig;"
        "assert 'tensorflow_datasets' not in sys.modules;"
        f"data.build_tfds(CocoConfig({source.root!r}), {str(tmp_path)!r}, 'again', ['val']);"
        f"dataset = TfdsConfig({str(tmp_path)!r}, 'again').load('val');"
        "dataset.records[0].open().read();"
        "assert 'tensorflow_datasets' in sys.modules;"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    source = write_dataset(tmp_path / "coco", [annotation()])
    out = tmp_path / "out"
    with pytest.raises(UserError, match="'a-b' is no name"):
        build_tfds(source, out, "a-b", ["train"])
    with pytest.raises(UserError, match=r"instances_val\.json does not exist"):
        build_tfds(source, out, "coco", ["train", "val"])

    def interrupted(examples, what, count):
        yield next(iter(examples))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tfds(source, out, "coco", ["train"], interrupted)
    assert list(out.iterdir()) == []
    build_tfds(source, out, "coco", ["train"])
    assert [path.name for path in out.iterdir()] == ["coco"]
    with pytest.raises(UserError, match="exists; remove it"):
        build_tfds(source, out, "coco", ["train"])
    with pytest.raises(UserError, match="has no split 'val', only train"):
        TfdsConfig(str(out), "coco").load("val")
    with pytest.raises(UserError, match="holds no dataset"):
        TfdsConfig(str(out), "other").load("train")
    with pytest.raises(UserError, match="holds no dataset"):
        TfdsConfig("long" * 100, "coco").load("train")


@pytest.mark.parametrize(
    ("entry", "annotations", "message"),
    [
        ("{", "[]", "cannot be read: it is not JSON"),
        ("[]", "[]", "not an object"),
        ('{"id": "x"}', "[]", "id 'x'"),
        (ENTRY, "{}", "not a list"),
        (ENTRY, "[5]", "is 5, not an object"),
        (ENTRY, json.dumps([annotation(category_id=99)]), "unknown category_id 99"),
        (ENTRY, json.dumps([annotation(image_id=99)]), "unknown image_id 99"),
    ],
)
def test_examples_that_others_wrote_are_checked(monkeypatch, entry, annotations, message):
    class Examples(list):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    examples = Examples([{"entry": entry, "annotations": annotations}])
    monkeypatch.setattr(tfds_source, "version_directory", lambda *_: Path("shards"))
    monkeypatch.setattr(tfds_source, "split_examples", lambda *_: examples)
    metadata = {"categories": {"train": [{"id": 20, "name": "b"}]}}
    monkeypatch.setattr(tfds_source, "shards_metadata", lambda _: metadata)
    with pytest.raises(UserError, match=rf"Example train\[0\] in shards .*{message}"):
        TfdsConfig("shards", "coco").load("train")
    metadata["categories"] = {"train": [{"id": "b"}]}
    with pytest.raises(UserError, match="shards has no categories for 'train'"):
        TfdsConfig("shards", "coco").load("train")


def test_entries_nested_too_deeply_to_be_written_are_named(tmp_path, monkeypatch):
    """What can just be read cannot be written from within tensorflow-datasets' own calls."""
    source = write_dataset(tmp_path / "coco", [annotation()])

    def too_deep(_):
        raise RecursionError

    monkeypatch.setattr(tfds_builder, "json", SimpleNamespace(dumps=too_deep))
    with pytest.raises(UserError, match=r"Image 7 in .*instances_train\.json has entries nested too deeply"):
        build_tfds(source, tmp_path / "out", "coco", ["train"])
    assert list((tmp_path / "out").iterdir()) == []


def test_shards_that_are_gone_are_an_error_of_reading(shapes, tmp_path):
    _, data_dir = shapes
    shutil.copytree(data_dir / "shapes", tmp_path / "shapes")
    record = TfdsConfig(str(tmp_path), "shapes").load("train").records[0]
    for file in (tmp_path / "shapes" / "examples").rglob("*array_record*"):
        file.unlink()
    with pytest.raises(OSError, match=r"0 of split 'train'|No such file"):
        record.open()


def test_the_command(tmp_path, capsys):
    source = write_dataset(tmp_path / "my-data", [annotation(), annotation(id=2, segmentation=[])])
    with open(tmp_path / "my-data" / "train" / "3.png", "wb") as file:
        file.write(b"spoilt")
    arguments = ["build-tfds", source.root, "--out", str(tmp_path / "out"), "--splits", "train"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "1 annotations without a usable polygon" in printed.out
    assert "3.png cannot be read" in printed.out
    assert printed.out.splitlines()[-1] == str(tmp_path / "out" / "my_data")
    assert_round_trip(source, tmp_path / "out", "my_data", "train")
    assert main(arguments) == 2
    assert "my_data exists" in capsys.readouterr().err


def test_pictures_are_read_from_shards(shapes, tmp_path):
    source, data_dir = shapes
    drawn = []
    for name, config in (("files", source), ("shards", TfdsConfig(str(data_dir), "shapes"))):
        outputs = OutputFolder(tmp_path / name)
        drawn.append([path.read_bytes() for path in write_pictures(config.load("val"), [], outputs, 2)])
        with pytest.raises(UserError, match=r"more than data\.max_pixels 4095"):
            write_pictures(config.load("val"), [], outputs, 1, max_pixels=64 * 64 - 1)
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2


def test_a_folder_that_shards_cannot_lie_in_is_named(shapes, tmp_path):
    folder = tmp_path / "a\udcff"
    with pytest.raises(UserError, match=r"--out: shards cannot lie in '.*a\\udcff/shapes'"):
        build_tfds(shapes[0], folder, "shapes", ["train"])
    assert not folder.exists()
    with pytest.raises(UserError, match=r"data\.source\.data_dir: shards cannot lie in '.*a\\udcff"):
        TfdsConfig(str(folder), "shapes").load("train")


def test_shards_lie_in_a_folder_of_any_other_name(tmp_path):
    image = {"id": 1, "file_name": os.fsdecode(b"caf\xe9\n.png"), "width": 16, "height": 12}
    source, out = write_dataset(tmp_path / "coco", [], images=[image]), tmp_path / "[1]?#% *"
    build_tfds(source, out, "shapes", ["train"])
    (record,) = TfdsConfig(str(out), "shapes").load("train").records
    assert record.path.endswith(image["file_name"])
    assert record.open().read(4) == b"\x89PNG"
