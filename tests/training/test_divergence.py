"""Steps that are not finite: what is blamed, what is kept, what is skipped; and batches that must not make them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.data.batching import loaders
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import Mean, Variables, init
from mask_rcnn_jax.structures import Batch, Proposals, TrainBatch
from mask_rcnn_jax.training import ExperimentConfig, train
from mask_rcnn_jax.training.runs import diagnosis, divergence
from mask_rcnn_jax.training.runs.diagnosis import NOTHING, diagnose
from mask_rcnn_jax.training.runs.divergence import load_kept_step
from tests.tiny import one_map_model, tiny_batch, tiny_experiment, tiny_model

CONFIG = tiny_experiment(Path("unused"), model=one_map_model())


def experiment(root: Path, **changes: Any) -> ExperimentConfig:
    """With images of floats, which only torchvision's resizing gives: they can hold a NaN."""
    config = tiny_experiment(root, model=one_map_model(), **changes)
    return replace(config, data=replace(config.data, resize="torchvision"))


def loaded(batch: Batch) -> TrainBatch:
    """The batch as the data pipeline gives it; images have the ids 100, 101, ..."""
    count = len(batch.images)
    inputs = replace(batch, images=batch.images.astype(np.float32))
    return TrainBatch(inputs, np.arange(count) + 100, np.zeros(count, np.int32), np.zeros(count, np.int32))


def changed(variables: Variables, name: str, value: float) -> Variables:
    """The variables with one number of the parameter `name` replaced."""

    def change(path, leaf):
        if "/".join(key.key for key in path) != name:
            return leaf
        return leaf.at[(0,) * leaf.ndim].set(value)

    params = jax.tree_util.tree_map_with_path(change, variables.params)
    assert not all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(variables.params)))
    return Variables(params, variables.buffers)


@pytest.fixture(scope="module")
def variables() -> Variables:
    return init(CONFIG.model, jax.random.key(0))


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    return loaded(tiny_batch(8))


def test_nothing_is_blamed_for_a_finite_step(variables, batch):
    assert diagnose(CONFIG, variables, batch, 1).startswith(NOTHING)


def test_runs_that_differ_in_more_than_the_model_share_the_program(variables, batch):
    diagnose(CONFIG, variables, batch, 1)
    compiled = diagnosis._program.cache_info().misses
    assert diagnose(replace(CONFIG, seed=1, steps=9), variables, batch, 1).startswith(NOTHING)
    assert diagnosis._program.cache_info().misses == compiled


def test_an_image_is_blamed(variables, batch):
    images = batch.inputs.images.copy()
    images[5, 10, 10, 1] = np.nan
    assert (
        diagnose(CONFIG, variables, replace(batch, inputs=replace(batch.inputs, images=images)), 1)
        == "images of image 105"
    )


def test_a_box_is_blamed(variables, batch):
    boxes = batch.inputs.ground_truth.boxes.copy()
    boxes[2, 0, 3] = np.inf
    truth = replace(batch.inputs.ground_truth, boxes=boxes)
    batch = replace(batch, inputs=replace(batch.inputs, ground_truth=truth))
    assert diagnose(CONFIG, variables, batch, 1) == "ground-truth boxes of image 102"


@pytest.mark.parametrize("name", ["backbone/stem/conv/kernel", "mask_head/deconv/bias"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_parameter_is_blamed(variables, batch, name, value):
    assert diagnose(CONFIG, changed(variables, name, value), batch, 1) == f"the parameter {name} itself"


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("backbone/res3/block1/conv2/conv/kernel", "backbone features res3"),
        ("rpn/objectness/conv/kernel", "RPN logits res3"),
        ("rpn/deltas/conv/kernel", "RPN deltas res3"),
        ("box_head/class_logits/kernel", "class logits"),
        ("box_head/box_deltas/kernel", "box deltas"),
        ("mask_head/predictor_kernel", "mask logits"),
    ],
)
def test_a_stage_is_blamed_that_overflows(variables, batch, name, stage):
    """Parameters as a diverging run leaves them: finite, but too large for what is made of them."""

    before = {"mask_head/predictor_kernel": "mask_head/deconv"}

    def fill(path, x):
        own = "/".join(key.key for key in path)
        return jnp.full_like(x, 3e38) if own == name or own.startswith(before.get(name, "none")) else x

    params = jax.tree_util.tree_map_with_path(fill, variables.params)
    found = diagnose(CONFIG, Variables(params, variables.buffers), batch, 1)
    assert found.startswith(f"{stage} of "), found


def test_a_run_passes_over_steps_says_so_stops_and_can_be_replayed(tmp_path, capsys, monkeypatch):
    """Row 3 of the batches of steps 2, 5 and 6 has a NaN; one such step may be skipped, two in a row may not."""
    config = experiment(tmp_path, steps=6, max_skipped_steps=1)
    load = loaders.TrainLoader.__call__

    def with_nan(self, step):
        batch = load(self, step)
        if step + 1 in (2, 5, 6):
            batch.inputs.images[3, 5, 5, 0] = np.nan
        return batch

    monkeypatch.setattr(loaders.TrainLoader, "__call__", with_nan)
    with pytest.raises(
        UserError, match=r"became infinite or NaN at step 6, first images of image \d+ \(images"
    ) as info:
        train(config, tmp_path / "run")
    said = capsys.readouterr().out
    folder = tmp_path / "run" / "divergence"
    files = [folder / f"step_{step:08}.npz" for step in (2, 5, 6)]
    assert sorted(folder.iterdir()) == files
    assert f"`mask-rcnn replay {files[2]}` repeats it; lower schedule.learning_rate" in str(info.value)
    for step, file in ((2, files[0]), (5, files[1])):
        assert f"became infinite or NaN at step {step}, first images of image" in said
        assert f"the step was skipped; `mask-rcnn replay {file}` repeats it" in said
    kept = [load_kept_step(file) for file in files]
    assert [one.step for one in kept] == [2, 5, 6]
    assert [one.variables is None for one in kept] == [True, True, False]
    for one in kept:
        assert np.isnan(one.batch.inputs.images).any(axis=(1, 2, 3)).tolist() == [row == 3 for row in range(8)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["skipped_steps"]) for line in lines] == [(1, 0), (2, 1), (3, 0), (4, 0), (5, 1), (6, 1)]
    for one, file in zip(kept, files, strict=True):  # those without parameters take the last checkpoint's
        assert main(["replay", str(file)]) == 1
        assert f"not finite first: images of image {one.batch.image_ids[3]}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (one_map_model(), "the gradient of the parameter "),
        pytest.param(tiny_model(), "(backbone features|RPN|class|box|mask|loss)[^(]* of ", marks=pytest.mark.slow),
    ],
    ids=["one map", "pyramid"],
)
def test_a_huge_learning_rate_names_what_it_breaks(tmp_path, model, what):
    config = replace(experiment(tmp_path), model=model)
    config = replace(config, schedule=replace(config.schedule, learning_rate=1e9, warmup_steps=0))
    with pytest.raises(UserError, match=rf"step 2, first {what}") as info:
        train(config, tmp_path / "run")
    file = tmp_path / "run" / "divergence" / "step_00000002.npz"
    kept = load_kept_step(file)
    assert kept.variables is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.variables))  # those before the step
    assert diagnose(config, kept.variables, kept.batch, 2) in str(info.value)


@pytest.mark.parametrize(
    "arrays",
    [{}, {"step": np.zeros(2)}, {"step": 1, "other/a": 1}, {"step": 1, "params/a": 1, "params/a/b": 1}, None],
    ids=["no step", "two", "elsewhere", "in an array", "cut off"],
)
def test_other_files_are_no_kept_steps(tmp_path, arrays):
    path = tmp_path / "step_00000002.npz"
    np.savez(path, **{"image_ids": np.zeros(1)}, **(arrays or {}))
    if arrays is None:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"step_00000002\.npz is no step that a run kept"):
        load_kept_step(path)


def test_a_kept_step_has_the_proposals_of_its_batch(tmp_path):
    boxes = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    given = Proposals(boxes, boxes[..., 0], boxes[..., 0] > 5)
    batch = TrainBatch(replace(tiny_batch(), proposals=given), *np.zeros((3, 2), np.int32))
    assert "replay" in divergence._save(tmp_path, 2, batch, None)
    kept = load_kept_step(tmp_path / "divergence" / "step_00000002.npz").batch
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, batch))


def empty(batch: Batch) -> Batch:
    truth = jax.tree.map(np.zeros_like, batch.ground_truth)
    return replace(batch, ground_truth=truth)


def one_pixel(batch: Batch) -> Batch:
    boxes = batch.ground_truth.boxes
    boxes = np.where(batch.ground_truth.valid[..., None], np.concatenate([boxes[..., :2], boxes[..., :2] + 1], -1), 0)
    return replace(batch, ground_truth=replace(batch.ground_truth, boxes=boxes))


def no_area(batch: Batch) -> Batch:
    boxes = batch.ground_truth.boxes
    boxes = np.concatenate([boxes[..., :2], boxes[..., :2]], -1)
    return replace(batch, ground_truth=replace(batch.ground_truth, boxes=boxes))


def one_pixel_image(batch: Batch) -> Batch:
    return replace(empty(batch), image_sizes=np.ones_like(batch.image_sizes))


@pytest.mark.parametrize("change", [empty, one_pixel, no_area, one_pixel_image])
def test_batches_with_little_in_them_are_finite(variables, change):
    """A batch of crowds alone is an empty one: the data pipeline leaves crowds out."""
    assert diagnose(CONFIG, variables, loaded(change(tiny_batch(8))), 1).startswith(NOTHING)


def test_a_gradient_is_blamed_that_alone_is_infinite(variables, batch, monkeypatch):
    """The root of a sum of zeros is finite, and has an infinite slope. Last here, as it needs a program of its own."""

    def root(config, variables, batch, keys, observe):
        value = jnp.sqrt(jnp.abs(variables.params["box_head"]["fc1"]["bias"]).sum())
        return {"loss/root": Mean(value, jnp.float32(1))}, variables.buffers

    monkeypatch.setattr(diagnosis, "loss_terms", root)
    diagnosis._program.cache_clear()
    found = diagnose(CONFIG, variables, batch, 1)  # biases begin as zeros
    diagnosis._program.cache_clear()
    assert found == "the gradient of the parameter box_head/fc1/bias"
