"""Checkpoints: what is saved comes back, the latest and the best stay, mistakes are named."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax import processes
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import place_of
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata, restore_for_inference, score
from mask_rcnn_jax.training.start import first_state
from mask_rcnn_jax.training.step import TrainState, init_state, make_mesh, replicate
from tests.tiny import tiny_experiment

METADATA = Metadata(tuple("abcdef"), category_ids=(3, 1, 4, 15, 9, 2), keypoint_names=("left", "right"))


def at_step(state: TrainState, step: int) -> TrainState:
    return replace(state, step=state.step * 0 + step)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of steps 1 to 5, of which the second has the best score."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_experiment(Path("unused"))
    state = init_state(config)
    with Checkpoints(workdir, config, METADATA) as checkpoints:
        for step, ap in enumerate((0.1, 0.5, 0.3, None, 0.2), 1):
            marked = jax.tree.map(lambda x, step=step: x + step, state.variables)
            checkpoints.save(replace(at_step(state, step), variables=marked))
            if ap is not None:
                checkpoints.record(step, {"segm/AP": ap, "bbox/AP": 0.9, "segm/APl": float("nan")})
    return workdir, config, state


def test_the_latest_two_and_the_best_stay(run):
    workdir, _, _ = run
    assert sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir()) == [2, 4, 5]


def test_a_run_goes_on_from_the_latest_bit_for_bit(run):
    workdir, config, state = run
    with Checkpoints(workdir, config, METADATA) as checkpoints:
        restored, told = checkpoints.restore(init_state(replace(config, seed=9)))
    assert (int(restored.step), told) == (5, [])
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored.variables), jax.tree.leaves(state.variables), strict=True):
        np.testing.assert_array_equal(a, b + 5)
    for a, b in zip(jax.tree.leaves(restored.optimizer), jax.tree.leaves(state.optimizer), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resumed_run_reads_no_other_weights(run):
    """A file of pretrained weights may be gone by then, and random ones would be drawn for nothing."""
    workdir, config, state = run
    mesh = make_mesh(config)
    first, told = first_state(replace(config, pretrained="nowhere.pth"), workdir, mesh, METADATA)
    assert told == []
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
    with Checkpoints(workdir, config, METADATA) as checkpoints:
        restored, _ = checkpoints.restore(first)
    assert int(restored.step) == 5
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    same = replicate(at_step(state, 5), mesh)
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(same), strict=True):
        assert (found.dtype, found.weak_type, found.sharding) == (expected.dtype, False, expected.sharding)
    for a, b in zip(jax.tree.leaves(restored.variables), jax.tree.leaves(state.variables), strict=True):
        np.testing.assert_array_equal(a, b + 5)


def test_what_many_devices_have_is_written_without_compiling(tmp_path):
    config, compiled = tiny_experiment(Path("unused")), []
    shapes_of_no_other_test = Variables({"layer": {"kernel": jnp.ones((16, 11, 7)), "bias": jnp.ones(24)}}, {})
    state = replicate(TrainState(jnp.int32(5), shapes_of_no_other_test, None), make_mesh(config))

    def listen(event: str, _: float, **about: str) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about["fun_name"])

    with Checkpoints(tmp_path, config, METADATA) as checkpoints:
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            checkpoints.save(state)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert (tmp_path / "checkpoints" / "5" / "model").is_dir()


def test_the_average_of_the_weights_is_kept_beside_them(tmp_path):
    config = tiny_experiment(Path("unused"), ema_decay=0.9)
    state = init_state(config)
    state = replace(state, step=state.step + 7, average=jax.tree.map(lambda x: x + 1, state.average))
    with Checkpoints(tmp_path, config, METADATA) as checkpoints:
        checkpoints.save(replace(state, skipped=state.skipped + 2))
    with Checkpoints(tmp_path, config, METADATA) as checkpoints:
        restored, _ = checkpoints.restore(init_state(config))
    assert (int(restored.step), int(restored.skipped)) == (7, 2)
    for a, b in zip(jax.tree.leaves(restored.average), jax.tree.leaves(state.variables.params), strict=True):
        np.testing.assert_array_equal(a, b + 1)


def test_without_a_checkpoint_the_state_is_the_first_one(tmp_path, run):
    _, config, state = run
    with Checkpoints(tmp_path, config, METADATA) as checkpoints:
        assert checkpoints.restore(state) == (state, [])


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(run, tmp_path):
    workdir, config, state = run
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/checkpoints/5/optimizer/_METADATA").unlink()
    with Checkpoints(tmp_path / "run", config, METADATA) as checkpoints:
        restored, told = checkpoints.restore(state)
        assert int(restored.step) == 4
        assert len(told) == 1
        assert "checkpoints/5 is damaged or half copied" in told[0]
        assert (tmp_path / "run/damaged/5").is_dir()
        checkpoints.save(at_step(restored, 5))  # its place is free again
    with Checkpoints(tmp_path / "run", config, METADATA) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 5


def test_of_several_processes_only_the_first_moves_a_damaged_checkpoint(run, tmp_path, monkeypatch):
    workdir, config, state = run
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/checkpoints/5/optimizer/_METADATA").unlink()
    said_by_first = iter([{5: 0.2}, (4, ["5 is damaged; moved to aside"])])
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "gather", lambda value: [next(said_by_first), value])
    with Checkpoints(tmp_path / "run", config, METADATA) as checkpoints:
        restored, told = checkpoints.restore(state)
    assert (int(restored.step), told) == (4, ["5 is damaged; moved to aside"])
    assert (tmp_path / "run/checkpoints/5").is_dir()  # the first process moves it, and this one does not see that yet


@pytest.mark.parametrize("item", ["model", "optimizer"])
def test_other_bytes_in_a_checkpoint_are_damage(run, tmp_path, item):
    workdir, config, state = run
    shutil.copytree(workdir, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints/5" / item).rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with Checkpoints(tmp_path / "run", config, METADATA) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 4


def test_checkpoints_that_are_all_damaged_are_named(run, tmp_path):
    workdir, config, state = run
    shutil.copytree(workdir, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").glob("*/model/_METADATA"):
        file.write_text("{")
    with (
        Checkpoints(tmp_path / "run", config, METADATA) as checkpoints,
        pytest.raises(UserError, match="holds no checkpoint that can be read"),
    ):
        checkpoints.restore(state)


@pytest.mark.parametrize(("which", "step"), [("best", 2), ("latest", 5), ("4", 4)])
def test_inference_takes_the_named_checkpoint(run, which, step):
    workdir, config, state = run
    found, variables, metadata = restore_for_inference(workdir, which)
    assert found == config
    assert metadata.step == step
    assert (metadata.class_names, metadata.category_ids) == (METADATA.class_names, METADATA.category_ids)
    assert metadata.keypoint_names == ("left", "right")
    np.testing.assert_array_equal(jax.tree.leaves(variables)[0], jax.tree.leaves(state.variables)[0] + step)


def test_the_best_is_found_beside_one_that_is_half_removed(run, tmp_path):
    """As a run that goes on removes it meanwhile, or left it when it was killed."""
    copied = Path(shutil.copytree(run[0], tmp_path / "run"))
    half_removed = copied / "checkpoints" / "4"
    for item in ("metadata", "model"):
        shutil.rmtree(half_removed / item)
    assert restore_for_inference(copied)[2].step == 2
    (copied / "checkpoints" / "5" / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="5 is damaged or half copied"):
        restore_for_inference(copied)


def test_a_checkpoint_can_be_named_by_its_folder(run, tmp_path):
    workdir, _, _ = run
    assert restore_for_inference(workdir / "checkpoints" / "4")[2].step == 4
    copied = tmp_path / "checkpoints" / "4"
    shutil.copytree(workdir / "checkpoints" / "4", copied)
    assert restore_for_inference(copied)[2].step == 4


def test_a_checkpoint_can_be_named_by_a_link_or_from_inside_it(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoints"
    (folder / "4" / "metadata").mkdir(parents=True)
    for name in ("best", "7"):
        (tmp_path / name).symlink_to(folder / "4")
        assert place_of(tmp_path / name) == (folder, 4)
    monkeypatch.chdir(folder / "4")
    assert place_of(Path(".")) == place_of(Path("metadata/..")) == (folder, 4)
    monkeypatch.chdir(tmp_path)
    assert place_of(Path("run/checkpoints/4")) == (Path("run/checkpoints"), 4)  # as it is spelt
    # One that lies elsewhere, and is linked to from where it belongs.
    moved = (folder / "4").rename(tmp_path / "moved")
    (folder / "4").symlink_to(moved)
    assert place_of(folder / "4") == (folder, 4)
    with pytest.raises(UserError, match=r"moved is a checkpoint without its name, which is the number of its step"):
        place_of(moved)


def test_a_link_to_a_checkpoint_is_read(run, tmp_path):
    link = tmp_path / "best"
    link.symlink_to(run[0] / "checkpoints" / "4")
    assert restore_for_inference(link)[2].step == 4


@pytest.mark.parametrize(
    ("which", "message"),
    [("3", "no checkpoint of step 3; there are 2, 4, 5"), ("newest", "'newest' names no checkpoint")],
)
def test_a_checkpoint_that_is_not_there_is_named(run, which, message):
    with pytest.raises(UserError, match=message):
        restore_for_inference(run[0], which)


def test_inference_takes_the_average_of_the_weights(run, tmp_path):
    workdir, config, state = run
    with pytest.raises(UserError, match=r"5 holds no average of the weights; only a run with ema_decay keeps one"):
        restore_for_inference(workdir, "latest", average=True)
    average = jax.tree.map(lambda x: x + 0.5, state.variables.params)
    with Checkpoints(tmp_path / "run", config, METADATA) as checkpoints:
        checkpoints.save(replace(state, average=average))
    _, variables, _ = restore_for_inference(tmp_path / "run", average=True)
    for found, expected in zip(jax.tree.leaves(variables.params), jax.tree.leaves(average), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(*map(jax.tree.leaves, (variables.buffers, state.variables.buffers)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints; name the workdir of a training run"):
        restore_for_inference(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        restore_for_inference(tmp_path)


def test_an_undefined_score_is_the_worst():
    assert score({"segm/AP": float("nan")}) < score({"segm/AP": 0.0})
    assert score({"bbox/AP": 0.4}) == 0.4


def test_the_best_is_found_by_what_the_model_is_for():
    metrics = {"bbox/AP": 0.1, "segm/AP": 0.2}
    assert score(metrics) == 0.2
    assert score(metrics | {"keypoints/AP": 0.3}) == 0.3
