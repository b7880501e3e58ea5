"""The numbers of a report against NumPy's and those of datasets scored from scratch, and its text and picture."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.evaluation.bootstrap import draw_images
from mask_rcnn_jax.evaluation.coco import score_coco
from mask_rcnn_jax.studies import Plan, run_study
from mask_rcnn_jax.studies.cells import cells_of
from mask_rcnn_jax.studies.plots import draw, write_picture
from mask_rcnn_jax.studies.report import _judged, report_of
from mask_rcnn_jax.studies.statistics import interval, spread
from mask_rcnn_jax.studies.tables import as_markdown
from tests.studies.pretended import ROWS, Pretended, detections, images, leave_result, small_plan

NAMES = ("bbox/AP", "bbox/AP75")
# Of "base", the same runs, runs with other bits and the same detections, and runs of their own.
THREE = ROWS | {"b_again": {}, "b_twice": {"accumulation_steps": 1, "data.num_workers": 1}}


@pytest.fixture
def finished(tmp_path: Path, monkeypatch) -> tuple[Plan, Path]:
    Pretended(monkeypatch)
    pairs = (("base", "b_again"), ("base", "b_twice"), ("base", "low"))
    plan = small_plan(tmp_path, THREE, seeds=(0, 1, 5), metrics=NAMES, resamples=40, equalities=pairs)
    run_study(plan, tmp_path / "out", "mine", (), lambda line: None)
    return plan, tmp_path / "out"


def score(row: str, seed: int, places: Any = range(4)) -> Mapping[str, float]:
    """The metrics on images, scored from scratch, each copy under an id of its own."""
    dataset, found = images(), detections(row, seed)
    records, results = [], []
    for copy, place in enumerate(sorted(places)):
        record = dataset.records[place]
        records.append(replace(record, image_id=copy))
        results += [result | {"image_id": copy} for result in found if result["image_id"] == record.image_id]
    return score_coco(replace(dataset, records=tuple(records)), results, "bbox", EvaluationConfig())


def test_spreads_and_paired_intervals_are_those_of_datasets_scored_from_scratch(finished) -> None:
    plan, folder = finished
    report = json.loads((folder / "study.json").read_text())
    for row, metric in itertools.product(("base", "low"), NAMES):
        values = [score(row, seed)[metric] for seed in plan.seeds]
        told = report["rows"][row][metric]
        assert told == {
            "seeds": 3,
            "mean": pytest.approx(np.mean(values)),
            "standard_deviation": pytest.approx(np.std(values, ddof=1)),
            "minimum": min(values),
            "maximum": max(values),
        }
    draws = [range(4), *draw_images(4, 40, plan.bootstrap_seed)]
    scores = {row: [[score(row, seed, draw) for seed in plan.seeds] for draw in draws] for row in ROWS}
    for metric in NAMES:
        means = {row: np.array([[one[metric] for one in seeds] for seeds in scores[row]]).mean(axis=1) for row in ROWS}
        whole, *drawn = means["low"] - means["base"]
        (one,) = (
            one
            for one in report["comparisons"]
            if (one["first"], one["second"], one["metric"]) == ("base", "low", metric)
        )
        assert one["difference"] == pytest.approx(whole)
        assert one["interval"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())
        assert one["interval"][0] < one["difference"] < one["interval"][1]


def test_any_two_rows_are_compared_and_the_same_detections_do_not_differ(finished) -> None:
    plan, folder = finished
    report = report_of(plan, folder)
    assert report == json.loads((folder / "study.json").read_text(), object_hook=_tuples)
    pairs = [(one["first"], one["second"]) for one in report["comparisons"] if one["metric"] == NAMES[0]]
    assert pairs == list(itertools.combinations(THREE, 2))
    for one in report["comparisons"]:
        alike = "low" not in (one["first"], one["second"])
        assert (one["difference"], one["interval"]) == (0.0, (0.0, 0.0)) or not alike
        assert one["seeds"] == [0, 1, 5]


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return table | ({"interval": tuple(table["interval"])} if table.get("interval") else {})


def test_equalities_are_judged_seed_by_seed(finished) -> None:
    plan, folder = finished
    leave_result(folder / "b_twice" / "seed_1", 4, "other bits")
    leave_result(folder / "b_twice" / "seed_5", 4, "b5", loss=0.75)
    run_study(plan, folder, "mine", (), lambda line: None)
    again, twice, low = report_of(plan, folder)["equalities"]
    assert [one["verdict"] for one in again["seeds"].values()] == ["equal"] * 3
    assert [one["verdict"] for one in twice["seeds"].values()] == ["equal", "within tolerance", "within tolerance"]
    assert "parameters: DIFFERENT" in "\n".join(twice["seeds"]["1"]["lines"])
    assert twice["seeds"]["5"]["lines"][-1] == "first difference: loss at step 4: 0.5 then, 0.75 now"
    apart = [max(abs(score("low", seed)[name] - score("base", seed)[name]) for name in NAMES) for seed in plan.seeds]
    assert [one["verdict"] for one in low["seeds"].values()] == ["differs"] * 3
    for tolerance in (min(apart), max(apart)):
        judged = report_of(replace(plan, tolerance=tolerance), folder)["equalities"][2]["seeds"].values()
        assert [one["verdict"] == "within tolerance" for one in judged] == [value <= tolerance for value in apart]
    (folder / "b_again" / "seed_0" / "metrics.jsonl").write_text("{")
    (seed, *_) = report_of(plan, folder)["equalities"][0]["seeds"].values()
    assert seed["verdict"] == "cannot be compared"
    assert "metrics.jsonl cannot be read" in seed["lines"][0]


def test_a_metric_that_one_of_two_rows_lacks_is_within_no_tolerance(finished) -> None:
    plan, folder = finished
    leave_result(folder / "b_twice" / "seed_0", 4, "other bits")
    cells = {cell.name: cell for cell in cells_of(plan, folder)}
    pair = cells["base/seed_0"], cells["b_twice/seed_0"]
    for second, verdict in ((0.5, "within tolerance"), (np.nan, "differs")):
        metrics = {NAMES[0]: 0.5, NAMES[1]: 0.5}, {NAMES[0]: 0.5, NAMES[1]: second}
        both = [(cell, {"metrics": values}) for cell, values in zip(pair, metrics, strict=True)]
        assert _judged(plan, *both)[0] == verdict


def test_rows_that_saw_other_images_have_no_interval(finished) -> None:
    plan, folder = finished
    for seed in plan.seeds:
        for name, change in (("outcome", {"data": "other"}), ("resamples", None)):
            file = folder / "low" / f"seed_{seed}" / "study" / f"{name}.json"
            tree = json.loads(file.read_text())
            if change is None:
                tree["of"]["outcome"]["data"] = "other"
            file.write_text(json.dumps(tree | (change or {})))
    for one in report_of(plan, folder)["comparisons"]:
        assert (one["interval"] is None) == ("low" in (one["first"], one["second"]))
        assert one["difference"] is not None


def test_lvis_and_averaged_weights_have_no_interval(tmp_path, monkeypatch) -> None:
    pretended = Pretended(monkeypatch)
    rows = {"base": {}, "low": {"ema_decay": 0.5}}
    plan = small_plan(tmp_path, rows, metrics=("average/bbox/AP", "bbox/AP"))
    run_study(plan, tmp_path / "coco", "mine", (), lambda line: None)
    average, plain = report_of(plan, tmp_path / "coco")["comparisons"]
    assert (average["difference"], average["interval"]) == (0.0, None)  # each is .25, as training has told
    assert plain["interval"] is not None
    pretended.images = replace(images(), frequencies=("c",))
    run_study(plan, tmp_path / "lvis", "mine", (), lambda line: None)
    _, of_lvis = report_of(plan, tmp_path / "lvis")["comparisons"]
    assert of_lvis == plain | {"interval": None}


def test_the_text_has_every_number_and_a_command_for_every_cell(finished) -> None:
    plan, folder = finished
    report = report_of(plan, folder)
    text = as_markdown(report, "a|b\n", folder)
    assert text == (folder / "study.md").read_text().replace("# mine\n", "# a\\|b \n", 1)
    (line,) = re.findall(r"^\| low \| `schedule\.learning_rate=0\.001` \|.*$", text.split("## bbox/AP75")[0], re.M)
    told = report["rows"]["low"]["bbox/AP"]
    numbers = [f"{told[name]:.4f}" for name in ("mean", "standard_deviation", "minimum", "maximum")]
    assert line.split(" | ")[2:] == ["3 of 3", *numbers[:3], f"{numbers[3]} |"]
    assert "| b_again | bbox/AP | 3 | +0.0000 | +0.0000 to +0.0000 |" in text
    assert "| base and b_again | equal | equal | equal |" in text
    assert text.count("    mask-rcnn reproduce ") == 12
    assert f"    mask-rcnn reproduce {folder}/low/seed_5\n" in text


def test_before_a_cell_is_finished_there_are_no_numbers(tmp_path, monkeypatch) -> None:
    Pretended(monkeypatch)
    plan = small_plan(tmp_path)
    own = replace(plan.rows[1], name="low", overrides=None)
    plan = replace(plan, rows=(plan.rows[0], own))
    report = report_of(plan, tmp_path)
    (one,) = report["comparisons"]
    assert (one["seeds"], one["difference"], one["interval"]) == ([], None, None)
    text = as_markdown(report, "mine", tmp_path)
    assert "| low | a configuration of its own | 0 of 2 |" in text
    assert "| base | - | 0 of 2 | - | - | - | - |" in text
    assert text.endswith("No cell is finished yet.\n")
    assert len(draw(report, "mine").axes) == 2


def test_the_picture_has_every_seed_and_interval(finished) -> None:
    plan, folder = finished
    report = report_of(plan, folder)
    figure = draw(report, "mine")
    assert len(figure.axes) == 2 * len(NAMES)
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    for name, line in zip(THREE, points, strict=True):
        values = [cell["metrics"]["bbox/AP"] for cell in report["cells"][name].values()]
        assert line.get_ydata().tolist() == values
    write_picture(report, "ä|$x$", folder / "picture.png")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_of_one_seed_there_is_no_deviation_and_of_nothing_no_mean() -> None:
    one = spread([0.5, float("nan")])
    assert (one.seeds, one.mean, one.standard_deviation, one.minimum) == (1, 0.5, None, 0.5)
    assert spread([float("nan")]).mean is spread([]).maximum is None


def test_an_interval_is_antisymmetric_and_that_of_a_row_with_itself_nothing() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 500)), rng.normal(1, size=(3, 500))
    assert interval(first, first) == (0.0, 0.0)
    there, back = interval(first, second), interval(second, first)
    assert there is not None
    assert back is not None
    assert there == pytest.approx((-back[1], -back[0]))
    # Of normal values of variance 2/3 that are 1 apart.
    assert there == pytest.approx((1 - 1.96 * (2 / 3) ** 0.5, 1 + 1.96 * (2 / 3) ** 0.5), abs=0.15)
    # Draws without any ground truth leave the others as they are.
    undefined = np.full((3, 100), np.nan)
    assert interval(np.hstack([first, undefined]), np.hstack([second, undefined])) == there
    assert interval(undefined, undefined) is None
