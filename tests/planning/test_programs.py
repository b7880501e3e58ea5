"""Inputs of programs that are planned are those that the loaders yield."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.data import ProposalFilesConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import KeypointHeadConfig, NormConfig, SemanticHeadConfig
from mask_rcnn_jax.planning import compiling
from mask_rcnn_jax.planning.compiling import compiled_plan, shared_mesh
from mask_rcnn_jax.planning.devices import Target, target
from mask_rcnn_jax.planning.programs import abstract_batch
from mask_rcnn_jax.sharding import by_rows, data_mesh, everywhere
from tests.tiny import tiny_batch, tiny_experiment, tiny_pooler


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)


def test_a_batch_has_the_shapes_of_one(tmp_path: Path) -> None:
    assert shapes(abstract_batch(tiny_experiment(tmp_path), (64, 64))) == shapes(tiny_batch(8))


def test_what_heads_learn_from_is_in_it(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path)
    keypoints = KeypointHeadConfig(pooler=tiny_pooler(14), num_keypoints=5, channels=(16,))
    stuff = SemanticHeadConfig(features=("p2", "p3"), channels=16, norm=NormConfig(kind="group_norm", groups=4))
    config = replace(
        config,
        model=replace(config.model, keypoint_head=keypoints, heads=(stuff,)),
        data=replace(config.data, proposals=ProposalFilesConfig(slots=50), resize="torchvision"),
    )
    batch = abstract_batch(config, (64, 96))
    assert batch.images.shape == (8, 64, 96, 3)
    assert batch.images.dtype == jnp.float32
    assert batch.ground_truth.keypoints.shape == (8, 4, 5, 3)
    assert batch.ground_truth.semantic.shape == (8, 64, 96)
    assert batch.proposals.boxes.shape == (8, 50, 4)


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path: Path) -> None:
    config, devices = tiny_experiment(tmp_path, batch_size=6), jax.devices()[:4]
    with pytest.raises(UserError, match="batch_size=6 cannot be shared equally by 4 devices; make it a multiple of 4"):
        shared_mesh(config, devices, "train")
    with pytest.raises(UserError, match="6 images cannot be shared equally by 4 devices; give a multiple of 4"):
        shared_mesh(config, devices, "detect")
    assert shared_mesh(replace(config, batch_size=8), devices, "train").size == 4


@pytest.fixture
def mesh(monkeypatch):
    """Four devices, and a program in place of the model's, with two matrices in and one out."""
    mesh = data_mesh(jax.devices()[:4])

    def lowered(config, mesh, what, size):
        rows = jax.ShapeDtypeStruct((4 * config.batch_size, 256), jnp.float32, sharding=by_rows(mesh))
        square = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=everywhere(mesh))
        return jax.jit(lambda a, b: a @ b).lower(rows, square)

    monkeypatch.setattr(compiling, "lowered", lowered)
    monkeypatch.setattr(Target, "compiler_options", lambda _: {})
    return mesh


def test_a_plan_has_the_compilers_memory_and_an_account(tmp_path: Path, mesh) -> None:
    plan = compiled_plan(tiny_experiment(tmp_path), target("h200:4"), mesh, "train", (64, 64))
    assert plan.images == 2
    assert plan.fits
    assert plan.memory is not None
    assert plan.memory.inputs == 4 * (8 * 256 + 256 * 256)
    assert plan.memory.outputs == 4 * (8 * 256)
    assert plan.account is not None
    assert plan.account.operations == 2 * 8 * 256 * 256
    # Parameters, their momentum and gradients, and few numbers beside them.
    parameters = 4 * sum(x.size for x in jax.tree.leaves(compiling.abstract(tiny_experiment(tmp_path).model).params))
    assert 3 * parameters <= plan.fixed < 3.1 * parameters


def test_what_the_compiler_refuses_has_its_reason(tmp_path: Path, mesh, monkeypatch) -> None:
    def refused(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory. Used 20.0G of 15.75G hbm.\nmore")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refused)
    plan = compiled_plan(tiny_experiment(tmp_path), target("v5e:2x2"), mesh, "train", (64, 64))
    assert not plan.fits
    assert plan.account is None
    assert plan.failure == "RESOURCE_EXHAUSTED: Ran out of memory. Used 20.0G of 15.75G hbm."
    assert plan.needed == 20 * 2**30
