"""A run that lies beside this file, as the version of its day wrote it, is read by every later one.

`stored_run.tar.xz` was made by `train` with the experiment of `tests.tiny` at half its widths, two steps and an average
of the weights. Its arrays were then rounded to two bits and saved again by `Checkpoints`, so that they compress, and
the folders in starts.jsonl and in Orbax's own notes were taken out. Where a format changes, this file stays, and one of
the later version is put beside it.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import by_stored_name, load_model, read_checkpoint, score
from mask_rcnn_jax.inference.stored import checksum
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata
from mask_rcnn_jax.training.runs.workdir import check_workdir, claim, read_config
from mask_rcnn_jax.training.start import first_state
from mask_rcnn_jax.training.step import make_mesh

METADATA = Metadata(("circle", "square", "triangle", "star", "ring", "cross"), (1, 2, 3, 4, 5, 6))
# Checksums of the parameters (there are no buffers), of their average, and of the optimizer's state.
WEIGHTS, AVERAGE, OPTIMIZER = 889713191, 271369682, 1780410130


@pytest.fixture
def run(tmp_path) -> Path:
    with tarfile.open(Path(__file__).with_name("stored_run.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def total(tree: object) -> int:
    """One checksum of all arrays of a tree."""
    sums = {name: checksum(np.asarray(leaf)) for name, leaf in by_stored_name(tree).items()}
    return checksum(np.array([sums[name] for name in sorted(sums)], np.uint32))


def test_its_model_is_read(run):
    model = load_model(run)
    assert (model.step, model.class_names, model.category_ids) == (2, METADATA.class_names, METADATA.category_ids)
    assert total(model.variables.params) == WEIGHTS
    assert total(load_model(run, average=True).variables.params) == AVERAGE


def test_it_can_be_resumed(run):
    config = read_config(run)
    assert config is not None
    check_workdir(run)
    assert claim(run, config) == config
    first, told = first_state(config, run, make_mesh(config), METADATA)
    with Checkpoints(run, config, METADATA) as checkpoints:
        assert checkpoints.is_evaluated(2)
        state, more = checkpoints.restore(first)
    assert (int(state.step), int(state.skipped), told, more) == (2, 0, [], [])
    assert total(state.variables.params) == WEIGHTS
    assert total(state.optimizer) == OPTIMIZER
    assert jax.tree.structure(state) == jax.tree.structure(first)


def before_evaluations(run: Path) -> None:
    """Rewrites the checkpoint as versions wrote it that evaluated first: metrics in `metadata`, and no checksums."""
    (run / "checkpoints/2/evaluation.json").unlink()
    file = run / "checkpoints/2/metadata/metadata"
    metadata = json.loads(file.read_text())
    del metadata["checksums"], metadata["keypoint_names"]
    file.write_text(json.dumps(metadata | {"metrics": {"bbox/AP": 0.5, "segm/AP": 0.25, "segm/APl": None}}))


def test_the_form_before_it_is_read_and_its_score_counts(run):
    before_evaluations(run)
    stored = read_checkpoint(run)
    assert stored.metadata.metrics is not None
    assert score(stored.metadata.metrics) == 0.25
    assert total(load_model(run).variables.params) == WEIGHTS
    config = read_config(run)
    assert config is not None
    with Checkpoints(run, config, METADATA) as checkpoints:
        assert checkpoints.is_evaluated(2)
        state, told = checkpoints.restore(first_state(config, run, make_mesh(config), METADATA)[0])
        assert (total(state.variables.params), told) == (WEIGHTS, [])


def test_another_version_is_refused_in_a_sentence(run):
    file = run / "checkpoints/2/metadata/metadata"
    metadata = json.loads(file.read_text())
    metadata["config"]["model"]["rpn"]["of_tomorrow"] = 1
    file.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"2 is of another version: no key rpn\.of_tomorrow"):
        load_model(run)
