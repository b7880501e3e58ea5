"""`mask-rcnn import` as a stranger uses it: published weights, then evaluation and fine-tuning without more flags."""

import json
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mask_rcnn_jax.cli import eval
from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.cli.runs import train
from mask_rcnn_jax.pretrained import read_tensors
from mask_rcnn_jax.training import restore_for_inference
from tests.data.coco_files import annotation, write_dataset

# What a person with a small machine and small images would set, once, when importing.
SMALL = (
    "data.short_side=32",
    "data.short_side_eval=32",
    "data.canvas=32,64",
    "data.num_workers=0",
    "model.rpn.post_nms_train=20",
    "model.rpn.post_nms_test=20",
    "model.rpn.pre_nms_train=50",
    "model.rpn.samples=16",
    "model.box_head.samples=8",
    "evaluation.images_per_device=1",
)


@pytest.fixture(scope="module")
def published(torchvision: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Mask R-CNN of torchvision for COCO's 90 ids, that finds persons and, as often, the unused id 12."""
    import torch
    from torchvision.models.detection import MaskRCNN, backbone_utils
    from torchvision.ops import FrozenBatchNorm2d

    from tests.conformance.reference import narrow

    settings = {"weights": None, "norm_layer": FrozenBatchNorm2d, "trainable_layers": 3}
    model = narrow(MaskRCNN(backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", **settings), 91))
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=0.02)
        elif name.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight")):
            torch.nn.init.ones_(tensor)
    model.state_dict()["roi_heads.box_predictor.cls_score.bias"][[1, 12]] = 8.0
    file = tmp_path_factory.mktemp("published") / "maskrcnn.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images with persons and bottles, under ids of their own."""
    root = tmp_path_factory.mktemp("data") / "coco"
    categories = [{"id": 5, "name": "bottle"}, {"id": 9, "name": "person"}]
    annotations = [
        annotation(id=1, category_id=9),
        annotation(id=2, category_id=5, image_id=3),
        annotation(id=3, category_id=9, image_id=3),
    ]
    write_dataset(root, annotations, categories=categories)
    return root


@pytest.fixture(scope="module")
def imported(published: Path, dataset: Path) -> Path:
    out = published.parent / "imported"
    splits = ("data.source.train_split=train", "data.source.val_split=train")
    settings = ("--set", f"data.source.root={dataset}", *splits, *SMALL)
    assert main(["import", str(published), "--out", str(out), *settings]) == 0
    return out


def test_the_import_is_a_checkpoint_with_its_preprocessing_and_classes(imported):
    config, _, metadata = restore_for_inference(imported)
    assert (config.data.resize, config.model.channel_order) == ("torchvision", "rgb")
    assert config.model.backbone.bottom_up.norm.epsilon == 0
    assert (len(metadata.class_names), len(set(metadata.class_names))) == (90, 90)
    assert metadata.category_ids == tuple(range(1, 91))
    assert metadata.class_names[:2] == ("person", "bicycle")
    assert metadata.class_names[11:13] == ("N/A 12", "stop sign")
    assert metadata.class_names[89] == "toothbrush"
    assert metadata.licence.startswith(
        "BSD-3-Clause, with the terms of the data that they were trained on, if they are"
    )


def test_it_evaluates_on_the_classes_that_a_dataset_has(imported, capsys):
    assert eval.main(["--workdir", str(imported), "--pictures", "1"]) == 0
    said = capsys.readouterr().out
    assert "AP" in said
    assert "licence of the weights: BSD-3-Clause, with" in said
    detections = json.loads((imported / "eval" / "detections.json").read_text())
    assert detections
    assert {entry["category_id"] for entry in detections} == {9}


@pytest.mark.slow
def test_it_is_fine_tuned_on_other_classes(published, imported, tmp_path, capsys):
    workdir = tmp_path / "run"
    settings = ["model.num_classes=2", "steps=1", "batch_size=8"]
    assert train.main(["--config", str(imported), "--workdir", str(workdir), "--set", *settings]) == 0
    said = capsys.readouterr().out
    assert f"{imported}: {len(read_tensors(published))} tensors loaded" in said
    assert "predictors kept by name for 2 of its 90 classes: bottle, person" in said
    assert "model.num_classes: 90 != 2" in said
    _, variables, metadata = restore_for_inference(workdir)
    assert metadata.class_names == ("bottle", "person")
    _, before, _ = restore_for_inference(imported)
    same = "backbone", "bottom_up", "stem", "conv", "kernel"
    for trees in ((variables.buffers, before.buffers),):
        for name in same:
            trees = tuple(tree[name] for tree in trees)
        np.testing.assert_array_equal(*trees)


def test_training_in_its_own_folder_is_refused_and_touches_nothing(imported, capsys):
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*")}
    assert train.main(["--config", str(imported), "--workdir", str(imported), "--set", "batch_size=8"]) == 2
    assert f"{imported} holds weights to start from" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in imported.rglob("*")} == before


def test_a_dataset_with_a_class_that_the_model_lacks_is_refused(imported, tmp_path, capsys):
    categories = [{"id": 5, "name": "balloon"}, {"id": 9, "name": "person"}]
    write_dataset(tmp_path / "coco", [annotation(category_id=9)], categories=categories)
    arguments = ["--workdir", str(imported), "--set", f"data.source.root={tmp_path / 'coco'}"]
    assert eval.main(arguments) == 2
    error = capsys.readouterr().err
    assert "trained on person, bicycle, car, motorcycle, airplane, ... (90), without balloon" in error


# --- Classes ----------------------------------------------------------------------------------------------------------


def test_classes_that_the_weights_know_keep_their_predictors_and_others_are_reset(published, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\n\ndog \nowl\n")
    arguments = ["import", str(published), "--out", str(tmp_path / "out"), "--classes", str(tmp_path / "names.txt")]
    assert main([*arguments, "--licence", "my own\nthing"]) == 0
    said = capsys.readouterr().out
    assert "  licence of the weights: my own\\nthing\n" in said
    assert "predictors kept by name for 2 of its 90 classes: cat, dog\n" in said
    assert "not among its classes, so reset at random: owl\n" in said
    assert "ResNet-18 FPN, frozen batch norm, masks, 3 classes: cat, dog, owl\n" in said
    config, variables, metadata = restore_for_inference(tmp_path / "out")
    assert (metadata.class_names, metadata.category_ids) == (("cat", "dog", "owl"), (1, 2, 3))
    assert metadata.licence == "my own\nthing"
    assert config.model.num_classes == 3
    bias = read_tensors(published)["roi_heads.box_predictor.cls_score.bias"]
    found = variables.params["box_head"]["class_logits"]["bias"]
    np.testing.assert_array_equal(found, [bias[17], bias[18], 0, bias[0]])  # COCO's ids of cats and dogs; background


def test_names_of_as_many_classes_keep_the_predictors(shared, tmp_path, capsys):
    """Detectron2's file as the model zoo packs it, twelve classes whose names it does not hold."""
    file = zoo_file(shared, "fpn", tmp_path)
    assert main(["import", str(file), "--out", str(tmp_path / "numbered")]) == 0
    said = capsys.readouterr().out
    assert "12 classes: class 1, class 2, class 3, class 4, ..." in said
    assert "give their names by --classes" in said
    categories = [{"id": 3 * number, "name": f"kind {number}"} for number in range(12, 0, -1)]
    (tmp_path / "coco.json").write_text(json.dumps({"categories": categories}))
    assert main(["import", str(file), "--out", str(tmp_path / "named"), "--classes", str(tmp_path / "coco.json")]) == 0
    assert "reset" not in capsys.readouterr().out
    _, variables, metadata = restore_for_inference(tmp_path / "named")
    assert metadata.class_names[:2] == ("kind 1", "kind 2")
    assert metadata.category_ids[:2] == (3, 6)
    bias = read_tensors(file)["roi_heads.box_predictor.cls_score.bias"]
    np.testing.assert_array_equal(variables.params["box_head"]["class_logits"]["bias"], bias)


def test_a_keypoint_model_is_for_persons(shared, tmp_path, capsys):
    assert main(["import", str(zoo_file(shared, "keypoint", tmp_path)), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ResNet-50 FPN, frozen batch norm, keypoints, one class: person" in said
    assert "assumed: blocks stride in their 1x1 convolutions (model.backbone.bottom_up.stride_in_1x1)" in said
    config, _, metadata = restore_for_inference(tmp_path / "out")
    assert metadata.class_names == ("person",)
    assert config.data.source.annotation_file == "person_keypoints_{split}.json"
    assert config.data.resize == "detectron2"


def zoo_file(shared: Path, name: str, folder: Path) -> Path:
    tensors = read_tensors(shared / "golden" / "detectron2" / f"{name}.safetensors")
    weights = {key.removeprefix("weights/"): tensors[key] for key in tensors if key.startswith("weights/")}
    file = folder / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    return file


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    assert main(["import", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error.removeprefix("error: ").strip()


def test_files_that_hold_no_detector_are_named(capsys, tmp_path):
    out = str(tmp_path / "out")
    missing, page, backbone = (str(tmp_path / name) for name in ("no.pth", "page.pth", "resnet.npz"))
    Path(page).write_text("<!DOCTYPE html><title>Not found</title>")
    np.savez(backbone, **{"conv1.weight": np.ones((8, 3, 7, 7), np.float32)})
    assert refused(capsys, missing, "--out", out) == f"{missing}: there is no such file"
    assert refused(capsys, page, "--out", out).startswith(f"{page} is a web page, not weights")
    message = refused(capsys, backbone, "--out", out)
    publishers = "torchvision, Detectron2, Detectron or MMDetection"
    assert message.startswith(f"{backbone} holds no detector of {publishers} (its first tensors are conv1.w")
    assert message.endswith(f"to train on a backbone, set pretrained={backbone}")
    assert not Path(out).exists()


def test_what_a_killed_import_left_is_not_taken_for_checkpoints(capsys, tmp_path):
    folder, missing = tmp_path / "out" / "checkpoints", str(tmp_path / "no.pth")
    for left in (folder, folder / "0.orbax-checkpoint-tmp"):
        left.mkdir(parents=True)
        assert refused(capsys, missing, "--out", str(tmp_path / "out")) == f"{missing}: there is no such file"
    (folder / "0").mkdir()
    assert "holds checkpoints already" in refused(capsys, missing, "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "0"], "--classes 0 is neither a number of classes nor a file of names"),
        (["--classes", "nowhere.txt"], "--classes nowhere.txt is neither"),
        (["--set", "model.num_clases=2"], "no key model.num_clases; did you mean model.num_classes"),
        (["--set", "model.rpn.num_convs=2"], "2 missing: rpn/conv2/conv/bias, rpn/conv2/conv/kernel"),
        (
            ["--config", "nowhere.py"],
            "--config nowhere.py does not exist; name a Python file, the folder of a run, or",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(capsys, published, tmp_path, arguments, message):
    assert message in refused(capsys, str(published), "--out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("twice.txt", "a\na\n", "one name on each line, no two the same"),
        ("empty.txt", "\n", "one name on each line"),
        ("list.json", "[1]", "not COCO's JSON with a list 'categories'"),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        (
            "text.json",
            '{"categories": [{"id": "cat", "name": "cat"}]}',
            "has the id 'cat', which is not a whole number",
        ),
        ("twice.json", '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "a category id twice"),
        ("empty.json", '{"categories": []}', "lists no categories"),
    ],
)
def test_class_files_are_checked(capsys, published, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    arguments = ("--out", str(tmp_path / "out"), "--classes", str(tmp_path / name))
    assert message in refused(capsys, str(published), *arguments)


def test_nothing_is_written_over(capsys, published, imported):
    assert "holds checkpoints already; use another folder" in refused(capsys, str(published), "--out", str(imported))


def test_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "import" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["imprt"])
    assert exit_.value.code == 2
    assert "invalid choice: 'imprt'" in capsys.readouterr().err
