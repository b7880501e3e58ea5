"""Studies of models that are given their proposals."""

from dataclasses import replace

import numpy as np
import pytest

from mask_rcnn_jax.data import BoxProposals, ProposalFilesConfig, write_proposals
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import GivenProposalsConfig
from mask_rcnn_jax.studies import Plan, cells, run_study
from mask_rcnn_jax.studies.cells import cells_of
from mask_rcnn_jax.training import ExperimentConfig
from tests.studies.pretended import Pretended, small_plan


def given(config: ExperimentConfig, path: str) -> ExperimentConfig:
    proposals = ProposalFilesConfig(path, path)
    model = replace(config.model, rpn=GivenProposalsConfig())
    return replace(config, model=model, data=replace(config.data, proposals=proposals))


def plan_with(plan: Plan, path: str) -> Plan:
    return replace(plan, rows=tuple(replace(row, config=given(row.config, path)) for row in plan.rows))


def test_images_are_evaluated_with_their_proposals(tmp_path) -> None:
    plan = small_plan(tmp_path)
    source = plan.rows[0].config.data.source
    source.prepare()
    boxes = BoxProposals(np.array([[1, 2, 30, 40]], np.float32), np.ones(1, np.float32))
    with (tmp_path / "val.npz").open("wb") as file:
        write_proposals(file, [(record.image_id, boxes) for record in source.load("val").records])
    (cell, *_) = cells_of(plan_with(plan, str(tmp_path / "val.npz")), tmp_path / "out")
    for record in cells._images(cell.config).records:
        np.testing.assert_array_equal(record.proposals.boxes, boxes.boxes)


def test_a_row_without_the_proposals_that_it_needs_is_named_first(tmp_path, monkeypatch) -> None:
    pretended = Pretended(monkeypatch)
    plan = small_plan(tmp_path)
    config = given(plan.rows[1].config, "none")
    config = replace(config, data=replace(config.data, proposals=None))
    plan = replace(plan, rows=(plan.rows[0], replace(plan.rows[1], config=config)))
    with pytest.raises(UserError, match=r"row low: model\.rpn is GivenProposalsConfig"):
        run_study(plan, tmp_path / "out", "mine", (), lambda line: None)
    assert pretended.trained == []


def test_other_proposals_under_a_name_that_was_trained_are_another_study(tmp_path, monkeypatch) -> None:
    Pretended(monkeypatch)
    plan = plan_with(small_plan(tmp_path), "first.npz")
    run_study(plan, tmp_path / "out", "mine", (), lambda line: None)
    with pytest.raises(UserError, match=r"another study .*data\.proposals: .*first\.npz.*second\.npz"):
        run_study(plan_with(plan, "second.npz"), tmp_path / "out", "mine", (), lambda line: None)
