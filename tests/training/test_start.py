"""The weights that a run starts from: nothing, a file, or the folder of another run."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import init
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata
from mask_rcnn_jax.training.start import first_variables
from mask_rcnn_jax.training.step import TrainState
from tests.pretrained.naming import flat, random_variables
from tests.tiny import tiny_experiment


def named(letters: str) -> Metadata:
    return Metadata(tuple(letters), tuple(range(len(letters))))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentConfig]:
    """A checkpoint without an optimizer, as an import leaves it."""
    folder = tmp_path_factory.mktemp("imported")
    config = tiny_experiment(folder)
    with Checkpoints(folder, config, named("abcdef")) as checkpoints:
        variables = jax.tree.map(jnp.asarray, random_variables(config.model, seed=1))
        checkpoints.save(TrainState(jnp.int32(0), variables, None))
    return folder, config


def test_without_a_file_the_seed_decides():
    config = tiny_experiment(Path("unused"), seed=3)
    variables, said = first_variables(config, named("abcdef"))
    assert said == []
    jax.tree.map(np.testing.assert_array_equal, variables, init(config.model, jax.random.key(3)))


def test_the_same_model_takes_everything(run):
    folder, config = run
    variables, said = first_variables(replace(config, pretrained=str(folder)), named("abcdef"))
    assert said == [f"{folder}: {len(flat(variables))} tensors loaded", "  predictors kept: its classes are the same"]
    jax.tree.map(np.testing.assert_array_equal, variables, random_variables(config.model, seed=1))


def test_other_classes_and_settings_are_said(run):
    folder, config = run
    model = replace(config.model, num_classes=2, rpn=replace(config.model.rpn, nms_iou=0.6))
    variables, said = first_variables(replace(config, model=model, pretrained=str(folder)), named("xy"))
    assert said[0] == f"{folder}: {len(flat(variables)) - 6} tensors loaded"
    assert said[1:] == [
        "  of other classes, so reset at random: box_head/box_deltas, box_head/class_logits, mask_head/predictor",
        "  its settings of step 0 and those of this run differ:",
        "  model.num_classes: 6 != 2",
        "  model.rpn.nms_iou: 0.7 != 0.6",
    ]


def test_names_decide_which_predictors_are_kept(run):
    """As many classes may be other ones, and the same ones may stand in another order."""
    folder, config = run
    names = ("c", "x", "a", "y", "z", "b")
    variables, said = first_variables(replace(config, pretrained=str(folder)), named(names))
    assert said[1:] == [
        "  predictors kept by name for 3 of its 6 classes: c, a, b",
        "  not among its classes, so reset at random: x, y, z",
    ]
    given, initial = random_variables(config.model, seed=1), init(config.model, jax.random.key(config.seed))
    for path, each in (
        ("box_head/class_logits/kernel", 1),
        ("box_head/box_deltas/bias", 4),
        ("mask_head/predictor_kernel", 1),
    ):
        found, before, random = (flat(tree)[path] for tree in (variables, given, initial))
        for index, name in enumerate(names):
            here, there = slice(each * index, each * (index + 1)), "abcdef".find(name)
            expected = random[..., here] if there < 0 else before[..., each * there : each * (there + 1)]
            np.testing.assert_array_equal(found[..., here], expected, f"{path} of {name}")
    background = flat(variables)["box_head/class_logits/bias"][-1]
    assert background == flat(given)["box_head/class_logits/bias"][-1]
    _, said = first_variables(replace(config, pretrained=str(folder)), named("uvwxyz"))
    assert said[1].startswith(
        "  of other classes, so reset at random: box_head/box_deltas, box_head/class_logits, mask_"
    )
    _, said = first_variables(replace(config, pretrained=str(folder)), named("fedcba"))
    assert said[1] == "  predictors reordered by name: its classes are the same in another order"


@pytest.mark.parametrize(
    ("name", "message"),
    [("a" * 5000, "cannot be read: File name too long"), ("a\0b", "is not the name of a file")],
    ids=["long", "null"],
)
def test_names_that_no_file_has_are_refused(run, name, message):
    """As the configuration in a folder of unknown origin may have them."""
    with pytest.raises(UserError, match=f"^pretrained=.*{message}"):
        first_variables(replace(run[1], pretrained=name), named("abcdef"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_order": "bgr"}, "made with model.channel_order=rgb, the model has bgr; set the model as"),
        ({"pixel_std": (1.0, 1.0, 1.0)}, "model.pixel_std=64.0,64.0,64.0, the model has 1.0,1.0,1.0"),
    ],
)
def test_pixels_of_another_kind_are_refused(run, change, message):
    """The features would mean nothing, and training would go on all the same."""
    folder, config = run
    with pytest.raises(UserError) as error:
        first_variables(replace(config, model=replace(config.model, **change), pretrained=str(folder)), named("abcdef"))
    assert str(error.value).startswith(f"pretrained={folder}: the weights were made with")
    assert message in str(error.value)


def test_another_network_is_refused(run):
    folder, config = run
    model = replace(config.model, box_head=replace(config.model.box_head, num_fcs=1))
    with pytest.raises(UserError, match="2 without a place in the model: box_head/fc2/bias, box_head/fc2/kernel"):
        first_variables(replace(config, model=model, pretrained=str(folder)), named("abcdef"))


def test_folders_and_files_without_weights_are_named(tmp_path):
    config = tiny_experiment(tmp_path)
    with pytest.raises(UserError, match=f"pretrained={tmp_path} holds no checkpoints"):
        first_variables(replace(config, pretrained=str(tmp_path)), named(""))
    with pytest.raises(UserError, match=f"pretrained={tmp_path}/no.pth: there is no such file"):
        first_variables(replace(config, pretrained=f"{tmp_path}/no.pth"), named(""))
    np.savez(tmp_path / "other.npz", weight=np.ones(2))
    with pytest.raises(UserError, match=rf"pretrained={tmp_path}/other\.npz: its tensors have names of no detector"):
        first_variables(replace(config, pretrained=f"{tmp_path}/other.npz"), named(""))
