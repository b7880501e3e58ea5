"""What a study's file may hold, and the sentence for what it may not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.config import checked, from_json, override, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import PoolerConfig, RoIPoolConfig
from mask_rcnn_jax.studies import Plan, Study, load_plan, plan_of
from mask_rcnn_jax.training import ExperimentConfig
from tests.tiny import smallest_model

ROOT = Path(__file__).parents[2]
BASE = ExperimentConfig()
LOW = {"schedule.learning_rate": 0.01}


def study(rows: Any = None, **changes: Any) -> Study:
    rows = {"base": {}, "low": LOW} if rows is None else rows
    return Study(**{"config": BASE, "rows": rows, "seeds": (0, 1)} | changes)


def test_rows_override_the_base_by_tables_or_as_on_the_command_line() -> None:
    several = {"steps": 50, "optimizer": "AdamWConfig", "model.mask_head": None, "data.canvas": (64, 128)}
    texts = ["steps=50", "optimizer=AdamWConfig", "model.mask_head=none", "data.canvas=64,128"]
    plan = plan_of(study({"base": {}, "a": several, "b": [*texts, "seed.x=1"][:-1]}, equalities=[("a", "b")]))
    assert [row.name for row in plan.rows] == ["base", "a", "b"]
    assert plan.rows[0].config == BASE
    assert plan.rows[1].config == plan.rows[2].config == override(BASE, texts)
    assert plan.rows[1].overrides == (
        "steps=50",
        "optimizer=AdamWConfig",
        "model.mask_head=None",
        "data.canvas=(64, 128)",
    )
    assert plan_of(study([("base", {}), ("low", LOW)])) == plan_of(study())


def test_the_seed_of_the_base_is_no_matter() -> None:
    assert plan_of(study(config=replace(BASE, seed=7))) == plan_of(study())


def test_a_row_may_be_a_configuration_of_its_own() -> None:
    other = replace(BASE, model=smallest_model(), seed=5)
    plan = plan_of(study({"base": {}, "boxes": other}))
    assert plan.rows[1].overrides is None
    assert plan.rows[1].config == replace(other, seed=0)
    wrong = replace(BASE, steps=0)
    with pytest.raises(UserError, match="row boxes: steps must be at least 1, not 0"):
        plan_of(study({"base": {}, "boxes": wrong}))


def test_a_plan_is_stored_and_read_again() -> None:
    rows = {"base": {}, "low": LOW, "boxes": replace(BASE, model=smallest_model())}
    plan = plan_of(study(rows, seeds=range(3), equalities=[["base", "low"]]))
    assert from_json(Plan, to_json(plan)) == plan
    assert checked(plan) == plan
    assert plan.seeds == (0, 1, 2)


def test_the_metrics_are_ap_of_all_that_is_found_unless_they_are_named() -> None:
    assert plan_of(study()).metrics == ("bbox/AP", "segm/AP")
    assert plan_of(study(config=replace(BASE, model=smallest_model()))).metrics == ("bbox/AP",)
    named = ("segm/AP/class 1", "bbox/AR100", "average/bbox/APs")
    assert plan_of(study({"base": {}, "ema": {"ema_decay": 0.9}}, metrics=named)).metrics == named


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, ["rows must have at least 1 item, not 0"]),
        (5, ["rows: neither a table nor a list", "5"]),
        ([("base", {}), "low"], ["rows: 'low' is not a name with its overrides"]),
        ({"base": {}, "low": {}}, ["row low overrides nothing; only a row named base"]),
        ({"low": []}, ["row low overrides nothing"]),
        ({"low": 5}, ["row low: its overrides are neither a table nor a list, but 5"]),
        ({"low": "steps=5"}, ["row low: its overrides are neither a table nor a list, but 'steps=5'"]),
        ({"low": {"schedule.learning_rat": 1}}, ["row low: no key schedule.learning_rat; did you mean"]),
        ({"low": ["steps"]}, ["row low: 'steps' is not of the form key=value"]),
        ({"low": {"steps": 0}}, ["row low: steps must be at least 1, not 0"]),
        ({"low": {"steps": "many"}}, ["row low: steps=many: expected int, not 'many'"]),
        ({"low": {"data.canvas": (65, 64)}}, ["row low: ", "multiple"]),
        ({"low": {"seed": 3}}, ["row low sets seed, which is that of each run"]),
        ([("base", {}), ("low", LOW), ("low", {"steps": 5})], ["two rows are named low"]),
        ({"base": {}, "low": LOW, "Low": {"steps": 5}}, ["two rows are named low (capitals do not count)"]),
        ({"base": {}, "low": LOW, "same": LOW}, ["rows low and same have the same settings", "equalities"]),
        ({"base": {}, "low": {"schedule.learning_rate": BASE.schedule.learning_rate}}, ["rows base and low have"]),
    ],
)
def test_a_row_that_cannot_be_is_named(rows: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        plan_of(study(rows))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a#b", "a b", "a|b", "-a", "a\n", "ä", "x" * 101, "study.md"],
)
def test_a_row_is_named_as_a_folder_may_be(name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a folder here; take letters, digits"):
        plan_of(study({"base": {}, name: LOW}))


@pytest.mark.parametrize("name", ["lr=0.01", "x2", "2x", "group_norm-32", "a.b", "x" * 100])
def test_settings_may_be_names(name: str) -> None:
    assert plan_of(study({"base": {}, name: LOW})).rows[1].name == name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": 5}, "config must be an ExperimentConfig, not int"),
        ({"seeds": ()}, "seeds must have at least 1 item, not 0"),
        ({"seeds": 3}, "seeds: expected tuple[int, ...], not 3"),
        ({"seeds": (0, -1)}, "seeds[1] must be at least 0"),
        ({"seeds": (0, 0.5)}, "seeds[1]: expected int, not 0.5"),
        ({"seeds": (0, 1, 0)}, "seeds: seed 0 is named twice; take one out"),
        ({"metrics": "segm/AP"}, "metrics: expected tuple[str, ...], not 'segm/AP'"),
        ({"metrics": ("segm/AP", "segm/AP")}, "metrics: metric segm/AP is named twice"),
        ({"metrics": ("AP",)}, "metrics: there is none named AP; they are kind/name"),
        ({"metrics": ("keypoints/APs",)}, "metrics: there is none named keypoints/APs"),
        (
            {"metrics": ("bbox/AR50",)},
            "metrics: no row has bbox/AR50, for which a model needs evaluation.max_detections",
        ),
        ({"metrics": ("bbox/AP/segm/x", "keypoints/AP")}, "metrics: no row has keypoints/AP"),
        ({"resamples": 10**9}, "resamples"),
        ({"metrics": ("segm/ap",)}, "metrics: there is none named segm/ap"),
        ({"metrics": ("keypoints/AP",)}, "metrics: no row has keypoints/AP, for which a model needs a keypoint_head"),
        ({"metrics": ("average/segm/AP",)}, "metrics: no row has average/segm/AP, for which a model needs ema_decay"),
        ({"checkpoint": "last"}, "checkpoint: expected one of latest, best, not 'last'"),
        ({"equalities": (("base", "other"),)}, "equalities: there is no row other; there are base, low"),
        ({"equalities": (("base", "base"),)}, "equalities: row base is compared with itself"),
        ({"equalities": ("base", "low")}, "equalities[0]: expected tuple[str, str], not 'base'"),
        ({"equalities": None}, "equalities: expected"),
        ({"tolerance": -1.0}, "tolerance must be at least 0, not -1.0"),
        ({"resamples": -1}, "resamples must be at least 0 and at most 1000000, not -1"),
        ({"bootstrap_seed": None}, "bootstrap_seed: expected int, not None"),
    ],
)
def test_a_field_that_cannot_be_is_named(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        plan_of(study(**changes))
    assert words in str(error.value)


def test_a_repetition_may_have_the_settings_of_its_row() -> None:
    rows = {"base": {}, "again": {}, "workers": {"data.num_workers": 3}}
    plan = plan_of(study(rows, equalities=(("base", "again"), ("base", "workers"))))
    assert plan.rows[0].config == plan.rows[1].config
    with pytest.raises(UserError, match="rows base and again have the same settings"):
        plan_of(study({"base": {}, "again": {}, "low": LOW}, equalities=(("base", "low"), ("again", "low"))))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "has no function get_study()"),
        ("get_study = 1\n", "must return a Study, not NoneType"),
        ("def get_study():\n    return 1\n", "must return a Study, not int"),
        ("def get_study():\n    return 1 / 0\n", "mine.py, line 2: ZeroDivisionError"),
        (
            "from mask_rcnn_jax.studies import Study\nfrom mask_rcnn_jax.training import ExperimentConfig\n"
            "def get_study():\n    return Study(ExperimentConfig(), {'base': {}}, ())\n",
            "mine.py: seeds must have at least 1 item, not 0",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named_and_nothing_is_made(tmp_path: Path, capsys, text: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert main(["study", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_example_is_a_study() -> None:
    plan = load_plan(ROOT / "examples" / "study.py")
    assert [row.name for row in plan.rows] == ["base", "lr=5e-4", "lr=2e-3", "again"]
    assert [row.config.schedule.learning_rate for row in plan.rows] == [1e-3, 5e-4, 2e-3, 1e-3]


def test_the_rows_of_the_ablations_change_what_they_say() -> None:
    plan = load_plan(ROOT / "examples" / "ablations.py")
    models = {row.name: row.config.model for row in plan.rows}
    assert len(models) == 12
    for name, model in models.items():
        poolers = [head.pooler for head in (model.box_head, *model.all_heads.values())]
        assert sorted(pooler.output_size for pooler in poolers) == ([7] if name == "no_masks" else [7, 14])
        kind = RoIPoolConfig if name.endswith("roi_pool") else PoolerConfig
        assert all(isinstance(pooler, kind) for pooler in poolers), name
        features = {"c4": ("res4",), "c5": ("res5",)}.get(name[:2], ("p2", "p3", "p4", "p5"))
        assert {pooler.features for pooler in poolers} == {features}
    assert models["c5-roi_pool"].backbone.out_strides == {"res5": 32}
    nuclei = load_plan(ROOT / "examples" / "ablations_nuclei.py")
    assert [row.name for row in nuclei.rows] == ["base", "roi_pool", "roi_align_max", "softmax", "mlp", "no_masks"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study file .*none\.py does not exist"):
        load_plan(tmp_path / "none.py")
