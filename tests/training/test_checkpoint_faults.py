"""Checkpoints when something is wrong: only what is broken is moved, and the best one survives every resume."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import Metadata, model_tree, read_checkpoint, stored_metrics
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.training.checkpoint import Checkpoints
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.step import TrainState


def opened(workdir: Path) -> Checkpoints:
    return Checkpoints(workdir, ExperimentConfig(), Metadata(("a",), (1,)))


def state(step: int, size: int = 3, name: str = "momentum") -> TrainState:
    """A state with one parameter, which is its step."""
    weight = jnp.full(size, float(step))
    return TrainState(jnp.int32(step), Variables({"layer": {"kernel": weight}}, {}), {name: weight})


def steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def saved(workdir: Path, scores: dict[int, float | None]) -> Path:
    with opened(workdir) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(state(step))
            if score is not None:
                checkpoints.record(step, {"bbox/AP": score})
    return workdir


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("written") / "run", {1: None, 2: None})


@pytest.fixture
def run(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


def files(workdir: Path) -> dict[str, bytes]:
    found = [path for path in workdir.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


def test_the_best_stays_after_every_resume(tmp_path):
    saved(tmp_path, {1: 0.2, 2: 0.8, 3: 0.1})
    saved(tmp_path, {4: 0.3, 5: None})
    assert steps(tmp_path) == [2, 4, 5]
    saved(tmp_path, {6: 0.9, 7: 0.4, 8: 0.5})
    assert steps(tmp_path) == [6, 7, 8]


def test_scores_of_older_checkpoints_count(tmp_path):
    """They have their metrics in the item `metadata`."""
    saved(tmp_path, {1: 0.8, 2: 0.1})
    for step, score in ((1, 0.8), (2, 0.1)):
        checkpoint = tmp_path / "checkpoints" / str(step)
        (checkpoint / "evaluation.json").unlink()
        file = checkpoint / "metadata" / "metadata"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {"bbox/AP": score}}))
    with opened(tmp_path) as checkpoints:
        assert checkpoints.is_evaluated(2)
    saved(tmp_path, {3: 0.5, 4: None, 5: None})
    assert steps(tmp_path) == [1, 4, 5]


def test_an_evaluation_is_added_to_its_checkpoint(tmp_path):
    metrics = {"bbox/AP": 0.25, "bbox/APl": float("nan")}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(1))
        assert not checkpoints.is_evaluated(1)
        checkpoints.record(1, metrics)
        assert checkpoints.is_evaluated(1)
    np.testing.assert_equal(stored_metrics(tmp_path / "checkpoints" / "1"), metrics)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.is_evaluated(1)


def gone(checkpoint: Path) -> None:
    for file in (checkpoint / "optimizer").rglob("d/*"):
        file.unlink()


def cut(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model" / "manifest.ocdbt", 20)


def no_json(checkpoint: Path) -> None:
    (checkpoint / "model" / "_METADATA").write_text("{")


def no_metadata(checkpoint: Path) -> None:
    (checkpoint / "model" / "_METADATA").unlink()
    (checkpoint / ".part").touch()  # as of an evaluation that was being added


def no_item(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "model")


def other_checksum(checkpoint: Path) -> None:
    file = checkpoint / "model" / "manifest.ocdbt"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [gone, cut, no_json, no_metadata, no_item, other_checksum])
def test_what_is_broken_is_moved_and_kept(run, damage):
    (run / "damaged" / "2").mkdir(parents=True)  # of an earlier damage
    damage(run / "checkpoints" / "2")
    with opened(run) as checkpoints:
        restored, (told,) = checkpoints.restore(state(0))
    assert int(restored.step) == 1
    assert "checkpoints/2 is damaged or half copied" in told
    assert told.endswith(f"moved to {run / 'damaged' / '2-1'}")
    assert steps(run) == [1]
    assert (run / "damaged" / "2-1" / "metadata").is_dir()


def other_json(checkpoint: Path) -> None:
    (checkpoint / "model" / "array_metadatas" / "process_0").write_text('["a"]')


def other_names(checkpoint: Path) -> None:
    (checkpoint / "model" / "_METADATA").rename(checkpoint / "model" / "tree.pb")


def other_items(checkpoint: Path) -> None:
    (checkpoint / "model").rename(checkpoint / "model.zip")


def later_database(checkpoint: Path) -> None:
    file = checkpoint / "model" / "manifest.ocdbt"
    content = bytearray(file.read_bytes())
    content[12] += 1  # the version of its format
    file.write_bytes(content)


def later_array(checkpoint: Path) -> None:
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{checkpoint / 'model'}/"}}
    database = tensorstore.KvStore.open(store).result()
    name = "params.layer.kernel/.zarray"
    array = json.loads(database.read(name).result().value)
    database.write(name, json.dumps(array | {"compressor": {"id": "of_tomorrow"}}).encode()).result()


def rewritten(**form: bool) -> Callable[[Path], None]:
    """The item as Orbax writes it when it is asked for arrays of another format."""

    def rewrite(checkpoint: Path) -> None:
        shutil.rmtree(checkpoint / "model")
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**form)) as checkpointer:
            checkpointer.save(checkpoint / "model", args=ocp.args.PyTreeSave(model_tree(state(2).variables)))

    return rewrite


OTHER_FORMATS = [rewritten(use_zarr3=True), rewritten(use_ocdbt=False)]


@pytest.mark.parametrize("change", [other_json, other_names, other_items, later_database, later_array, *OTHER_FORMATS])
def test_another_layout_is_refused_and_left(run, change):
    """A later Orbax may write one: nothing is broken."""
    change(run / "checkpoints" / "2")
    before = files(run)
    with (
        opened(run) as checkpoints,
        pytest.raises(UserError, match=r"checkpoints/2 has a layout that this version does not know \(.*\); read"),
    ):
        checkpoints.restore(state(0))
    assert files(run) == before


def test_metadata_of_another_layout_are_no_damage(run):
    folder = run / "checkpoints" / "2" / "metadata"
    (folder / "metadata").rename(folder / "metadata.json")
    sentence = r"checkpoints/2 has a layout that this version does not know \(metadata holds metadata\.json\)"
    for action in (opened, read_checkpoint, lambda run: read_checkpoint(run, "latest")):
        with pytest.raises(UserError, match=sentence):
            action(run)


def test_every_byte_of_the_arrays_counts(tmp_path):
    """Values that do not compress are stored as they are, and no checksum of the format covers them."""
    noise = jnp.asarray(np.random.default_rng(0).integers(0, 256, 4000, np.uint8))
    noisy = replace(state(2), variables=Variables({"layer": {"kernel": noise}}, {}))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(replace(noisy, step=jnp.int32(1)))
        checkpoints.save(noisy)
    for file in (tmp_path / "checkpoints" / "2" / "model").rglob("d/*"):
        content = file.read_bytes()
        if (found := content.find(noise.tobytes()[1000:1020])) >= 0:
            file.write_bytes(content[:found] + bytes([content[found] ^ 1]) + content[found + 1 :])
    with opened(tmp_path) as checkpoints:
        restored, (told,) = checkpoints.restore(noisy)
    assert int(restored.step) == 1
    assert r"2 is damaged or half copied (params.layer.kernel has other bytes than were written)" in told


def test_an_unfinished_checkpoint_is_written_again(tmp_path):
    left = tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp"
    (left / "model").mkdir(parents=True)
    (left / "model" / "_METADATA").write_text("{")
    saved(tmp_path, {1: None})
    assert steps(tmp_path) == [1]
    with opened(tmp_path) as checkpoints:
        assert int(checkpoints.restore(state(0))[0].step) == 1


def test_arrays_of_numpy_can_be_read(tmp_path):
    """Imported weights are; Orbax stores less beside them."""
    numpy = replace(state(1), variables=Variables({"layer": {"kernel": np.full(3, 1, np.float32)}}, {"none": {}}))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(numpy)
    with opened(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(
            replace(state(0), variables=Variables(state(0).variables.params, {"none": {}}))
        )
    np.testing.assert_array_equal(restored.variables.params["layer"]["kernel"], np.ones(3))


def test_nothing_is_moved_where_nothing_else_can_be_read(run):
    for step in ("1", "2"):
        gone(run / "checkpoints" / step)
    before = files(run)
    with opened(run) as checkpoints, pytest.raises(UserError, match="can be read, and none was moved"):
        checkpoints.restore(state(0))
    assert files(run) == before


def test_files_where_folders_belong_are_named(run, tmp_path):
    gone(run / "checkpoints" / "2")
    (run / "damaged").touch()
    with (
        opened(run) as checkpoints,
        pytest.raises(UserError, match=r"2 is damaged and cannot be moved to "),
    ):
        checkpoints.restore(state(0))
    assert steps(run) == [1, 2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").touch()
    with pytest.raises(UserError, match=r"other/checkpoints cannot be written \(File exists\)"):
        opened(tmp_path / "other")


def test_a_disk_that_fails_is_no_damage(run):
    """A link to itself fails to open, for tensorstore and for Python, whoever runs this."""
    for pattern in ("model/**/d/*", "model/_METADATA", "optimizer/manifest.ocdbt"):
        contents = {path: path.read_bytes() for path in (run / "checkpoints" / "2").glob(pattern)}
        for path in contents:
            path.unlink()
            path.symlink_to(path.name)
        before = files(run)
        with (
            opened(run) as checkpoints,
            pytest.raises(UserError, match=rf"checkpoints/2 cannot be read \({os.strerror(errno.ELOOP)}\)"),
        ):
            checkpoints.restore(state(0))
        assert files(run) == before
        for path, content in contents.items():
            path.unlink()
            path.write_bytes(content)


def test_no_checkpoint_is_passed_over_where_a_disk_fails_once(run, monkeypatch):
    """Orbax takes what it cannot look at for no folder."""
    look, failed = os.stat, []

    def fails_once(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("checkpoints/2") and not failed:
            failed.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return look(path, **options)

    monkeypatch.setattr(os, "stat", fails_once)
    with pytest.raises(UserError, match="checkpoints/2 could not be looked at; check that disk"):
        opened(run)
    failed.clear()
    with pytest.raises(UserError, match="checkpoints/2 is damaged"):  # as it has no model
        read_checkpoint(run, "latest")
    assert failed


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (Exception("Encountered error while reading array"), ValueError("[os_error_code='116']"), os.strerror(116)),
        (Exception("Encountered error while reading array"), ValueError("NOT_FOUND: chunk\n here"), "NOT_FOUND: chunk"),
        (
            KeyError('Item "model" was not found in the checkpoint.'),
            None,
            'Item "model" was not found in the checkpoint.',
        ),
        (ValueError("Checkpoint directory does not exist: 2"), None, "Checkpoint directory does not exist: 2"),
        (NotADirectoryError("Path is not a directory: 2"), None, "Path is not a directory: 2"),  # its stat failed
    ],
)
def test_what_orbax_then_raises_is_no_damage(run, error, cause, reason):
    """Files that were whole a moment ago cannot be read any more."""

    def fails(*_: object, **__: object) -> Any:
        raise error from cause

    before = files(run)
    with opened(run) as checkpoints:
        checkpoints._manager.restore = fails
        with pytest.raises(UserError, match=rf"checkpoints/2 cannot be read \({reason}\)"):
            checkpoints.restore(state(0))
    assert files(run) == before


@pytest.mark.parametrize(
    ("other", "different"),
    [
        (state(0, size=4), r"model, params\.layer\.kernel is \(3,\) and not \(4,\)"),
        (state(0, name="velocity"), r"optimizer, state\.\['momentum'\] is \(3,\) and not absent"),
    ],
)
def test_arrays_of_another_version_are_named_and_left(run, other, different):
    before = files(run)
    with opened(run) as checkpoints, pytest.raises(UserError, match=rf"2 does not fit this run \({different}\)"):
        checkpoints.restore(other)
    assert files(run) == before


@pytest.mark.parametrize(
    "name", ["a#b", "a?b", "100%", "%20", "[1]", "a*", "back\\slash", "gs:", "file:", "é ü", "\udcff"]
)
def test_a_folder_may_have_any_name(tmp_path, name):
    workdir = tmp_path / name / "run"
    saved(workdir, {1: 0.5})
    (tmp_path / "axb").mkdir()
    with opened(workdir) as checkpoints:
        restored, told = checkpoints.restore(state(0))
        assert (int(restored.step), told) == (1, [])
        np.testing.assert_array_equal(restored.variables.params["layer"]["kernel"], np.ones(3))
    assert steps(workdir) == [1]


def test_a_name_that_cannot_be_reached_is_refused(tmp_path, monkeypatch):
    (tmp_path / "[tmp]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "[tmp]"))
    with pytest.raises(UserError, match=r"\[1\].* but that of .*\[tmp\].* set TMPDIR"):
        opened(tmp_path / "[1]")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"cannot be written .*rename the folder"):
        opened(tmp_path / "[1]")
