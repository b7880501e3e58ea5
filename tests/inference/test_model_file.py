"""Loading a model: as training wrote it, or a sentence that names what is wrong with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mask_rcnn_jax import load_model
from mask_rcnn_jax.data import CocoConfig, DataConfig, ShapesConfig
from mask_rcnn_jax.data.augment.keypoint_flips import COCO_KEYPOINTS
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import Metadata, _check_names, _older_keypoint_names, read_checkpoint
from mask_rcnn_jax.inference.stored import Damaged, Unfamiliar, check_readable
from mask_rcnn_jax.models import MaskRCNNConfig
from mask_rcnn_jax.models.heads.keypoint import KeypointHeadConfig
from mask_rcnn_jax.training.checkpoint import Checkpoints
from mask_rcnn_jax.training.step import init_state
from tests.tiny import tiny_experiment

NAMES, IDS = tuple("abcdef"), (3, 1, 4, 15, 9, 2)
JOINTS = ("left_eye", "right_eye")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_experiment(Path("unused"))
    with Checkpoints(workdir, config, Metadata(NAMES, IDS, keypoint_names=JOINTS, licence="free")) as checkpoints:
        checkpoints.save(init_state(config))
    return workdir


@pytest.fixture
def copied(written, tmp_path) -> Path:
    """A checkpoint to break, without the optimizer, which prediction does not need."""
    folder = tmp_path / "checkpoints" / "0"
    shutil.copytree(written / "checkpoints" / "0", folder, ignore=shutil.ignore_patterns("optimizer"))
    return folder


def test_a_model_is_what_training_saved(written, copied) -> None:
    config = tiny_experiment(Path("unused"))
    for path in (written, written / "checkpoints" / "0", copied, copied.parents[1]):
        model = load_model(path)
        assert (model.config, model.data, model.step) == (config.model, config.data, 0)
        assert (model.class_names, model.category_ids, model.keypoint_names) == (NAMES, IDS, JOINTS)
        assert model.licence == "free"
    jax.tree.map(np.testing.assert_array_equal, model.variables, init_state(config).variables)


def test_an_older_checkpoint_has_no_names_of_keypoints_and_no_licence(copied) -> None:
    (file,) = (copied / "metadata").glob("metadata")
    content = json.loads(file.read_text())
    assert (content.pop("keypoint_names"), content.pop("licence")) == (list(JOINTS), "free")
    file.write_text(json.dumps(content))
    assert (load_model(copied).keypoint_names, load_model(copied).licence) == ((), "")
    file.write_text(json.dumps(content | {"licence": ["free"]}))
    with pytest.raises(UserError, match="damaged"):
        load_model(copied)


@pytest.mark.parametrize(
    ("file", "count", "names"),
    [
        ("person_keypoints_{split}.json", 17, COCO_KEYPOINTS),
        ("person_keypoints_{split}.json", 16, ()),
        ("instances_{split}.json", 17, ()),
    ],
)
def test_older_checkpoints_have_cocos_keypoints_only_of_cocos_files(file, count, names) -> None:
    data = DataConfig(CocoConfig(annotation_file=file))
    model = MaskRCNNConfig(keypoint_head=KeypointHeadConfig(num_keypoints=count))
    assert _older_keypoint_names(model, data) == names
    assert _older_keypoint_names(replace(model, keypoint_head=None), data) == ()
    assert _older_keypoint_names(model, DataConfig(ShapesConfig())) == ()


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    return message


def test_what_is_half_copied_is_named(copied, capfd) -> None:
    """Every file in turn is missing or cut short: the model is whole, or a sentence says that it is not."""
    whole = jax.tree.leaves(load_model(copied).variables)
    files = [path for path in copied.rglob("*") if path.is_file()]
    refusals = {}
    for path in files:
        content = path.read_bytes()
        for rest in (None, content[: len(content) // 2]):
            path.unlink(missing_ok=True)
            if rest is not None:
                path.write_bytes(rest)
            try:
                found = jax.tree.leaves(load_model(copied).variables)
            except UserError as error:
                refusals[path.relative_to(copied).as_posix(), rest is None] = str(error)
            else:
                for a, b in zip(found, whole, strict=True):
                    np.testing.assert_array_equal(a, b)
        path.write_bytes(content)
    # Into how many files arrays are written depends on how fast that is.
    needed = {"metadata/metadata", "model/_METADATA", "model/manifest.ocdbt"}
    assert needed <= {name for name, is_missing in refusals if is_missing}
    assert {True, False} <= {is_missing for name, is_missing in refusals if "/d/" in name}
    assert all("is damaged or half copied" in refusal and "\n" not in refusal for refusal in refusals.values())
    error = capfd.readouterr().err
    assert "Traceback" not in error, error[-3000:]


@pytest.mark.parametrize("item", ["metadata/metadata", "model"])
def test_a_missing_item_is_named(copied, item) -> None:
    path = copied / item
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "is damaged or half copied" in refused(copied)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda tree: tree["config"]["model"].update(backbones=1), "backbones"),
        (lambda tree: tree["config"]["model"]["box_head"].pop("fc_channels"), "fc_channels"),
        (lambda tree: tree["config"].pop("data"), "data"),
        (lambda tree: tree.pop("class_names"), "class_names"),
    ],
)
def test_another_version_is_named(copied, change, part) -> None:
    file = copied / "metadata" / "metadata"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    message = refused(copied)
    assert "is of another version" in message
    assert part in message


@pytest.mark.parametrize("key", ["class_names", "category_ids"])
def test_names_and_ids_are_those_of_all_classes(copied, key) -> None:
    file = copied / "metadata" / "metadata"
    tree = json.loads(file.read_text())
    tree[key].pop()
    file.write_text(json.dumps(tree))
    assert f"{key} of the metadata are 5, and the model has 6" in refused(copied)
    with pytest.raises(UserError, match=f"{key} of the metadata are 5"):
        read_checkpoint(copied)


@pytest.mark.parametrize("checksums", [[], {"model": 7}, {"model": {"params.a": None}}, {"model": {"params.a": 1e300}}])
def test_checksums_are_whole_numbers_by_name(tmp_path, checksums) -> None:
    file = tmp_path / "metadata" / "metadata"
    file.parent.mkdir()
    file.write_text(json.dumps({"checksums": checksums}))
    with pytest.raises(Unfamiliar, match=r"checksums of .* metadata are no"):
        check_readable(tmp_path / "model", [])


def test_keypoints_are_named_all_or_none() -> None:
    model = MaskRCNNConfig(num_classes=2, keypoint_head=KeypointHeadConfig(num_keypoints=3))
    metadata = Metadata(("a", "b"), (1, 2))
    _check_names(model, metadata)
    _check_names(model, replace(metadata, keypoint_names=("x", "y", "z")))
    with pytest.raises(Damaged, match="keypoint_names of the metadata are 2, and the model has 3"):
        _check_names(model, replace(metadata, keypoint_names=JOINTS))


@pytest.mark.parametrize(("key", "value"), [("fc_channels", 48), ("num_fcs", 3)])
def test_arrays_of_another_model_are_refused(copied, key, value) -> None:
    file = copied / "metadata" / "metadata"
    tree = json.loads(file.read_text())
    assert key in tree["config"]["model"]["box_head"]
    tree["config"]["model"]["box_head"][key] = value
    file.write_text(json.dumps(tree))
    message = refused(copied)
    assert "is of another version" in message
    assert "box_head" in message


def test_a_folder_without_a_model_is_named(tmp_path) -> None:
    assert "holds no checkpoints" in refused(tmp_path)
    assert "holds no checkpoints" in refused(tmp_path / "nowhere")
