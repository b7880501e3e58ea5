"""`mask-rcnn lint`: text and JSON, and the exit status."""

import json

import pytest

from mask_rcnn_jax.cli.main import main
from tests.data.coco_files import annotation, write_dataset


@pytest.fixture
def root(tmp_path):
    """Two black images, which are copies of each other: a warning; category 10 has no objects: another."""
    write_dataset(tmp_path, [annotation(), annotation(id=2, image_id=3)])
    return tmp_path


def test_warnings_alone(root, capsys):
    assert main(["lint", str(root)]) == 0
    printed = capsys.readouterr().out
    for line in (
        "train: 2 images (0 without objects), 2 objects, 0 crowds",
        "images 16 x 12 to 16 x 12",
        "b (20)",
        "2 in 2",
        "warning: category-unused: 1 categories without objects",
        "    train/3.png: has the same pixels as train/7.png",
        "0 errors, 2 warnings",
    ):
        assert line in printed


def test_errors_as_json(root, capsys):
    (root / "train" / "3.png").unlink()
    assert main(["lint", str(root), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["dataset"], report["errors"], report["warnings"]) == (1, str(root), 1, 1)
    assert report["findings"][0] == {
        "severity": "error",
        "code": "image-missing",
        "message": "does not exist",
        "split": "train",
        "file": "train/3.png",
        "image_id": 3,
        "annotation_id": None,
        "category_id": None,
    }
    counts = report["splits"]["train"]
    assert (counts["images"], counts["objects"], counts["small"]) == (2, 2, 2)
    assert counts["classes"][1] == {"id": 20, "name": "b", "objects": 2, "images": 2, "crowds": 0}


def test_the_rest_is_said_and_listed(root, capsys):
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] += [annotation(id=number, bbox=[0, 0, 0, 0]) for number in range(10, 30)]
    content["categories"] += [{"id": number, "name": f"class {number}"} for number in range(100, 140)]
    path.write_text(json.dumps(content))
    assert main(["lint", str(root), "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "and 15 more: --all lists them" in printed
    assert "... 12 classes between: --all lists them" in printed
    assert printed.count("has the box [0, 0, 0, 0] in an image 16 x 12") == 5
    assert "copies" not in printed
    assert main(["lint", str(root), "--all"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("has the box [0, 0, 0, 0] in an image 16 x 12") == 20
    assert "more:" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "has no annotations of a split 'test'; choose from train"),
        (["--annotation-file", "person_keypoints_{split}.json"], "holds no person_keypoints_{split}.json"),
        (["--annotation-file", "instances.json"], "must hold {split}"),
    ],
)
def test_mistakes_are_named(root, capsys, options, message):
    assert main(["lint", str(root), *options]) == 2
    assert message in capsys.readouterr().err


def test_no_directory(tmp_path, capsys):
    assert main(["lint", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["lint", str(tmp_path)]) == 2
    assert "holds no instances_{split}.json" in capsys.readouterr().err


def test_other_annotation_files(root):
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "people_train.json")
    assert main(["lint", str(root), "--annotation-file", "people_{split}.json", "--split", "train"]) == 0


def test_the_checks_are_listed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["lint", "--help"])
    assert exit_.value.code == 0
    assert "split-leak             error    images that another split holds too" in capsys.readouterr().out
