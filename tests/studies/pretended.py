"""Runs that train nothing: what they leave behind is that of a run, and detections that get better with the row."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn_jax.data import CocoDataset
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, EvaluationResult
from mask_rcnn_jax.evaluation.coco import score_coco
from mask_rcnn_jax.inference.checkpoint import Metadata
from mask_rcnn_jax.studies import Plan, Study, cells, plan_of, work
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.runs.provenance import hash_metrics, repeatable_metrics
from mask_rcnn_jax.training.runs.workdir import claim, locked
from tests.evaluation.scenes import SIDE, dataset_of, detections_in, random_boxes, results_of
from tests.tiny import smallest_model, tiny_experiment

ROWS = {"base": {}, "low": {"schedule.learning_rate": 0.001}}


def small_plan(root: Path, rows: Any = None, **changes: Any) -> Plan:
    config = tiny_experiment(root, model=smallest_model())
    return plan_of(Study(**{"config": config, "rows": rows or ROWS, "seeds": (0, 1), "resamples": 10} | changes))


def images() -> CocoDataset:
    rng = np.random.default_rng(0)
    return dataset_of([random_boxes(rng, count) for count in (5, 3, 6, 4)])


def detections(row: str, seed: int) -> list[dict[str, Any]]:
    """The truth, moved by so much that the rows differ; rows that begin alike find the same."""
    dataset, rng = images(), np.random.default_rng([seed, ord(row[0])])
    return [
        result
        for record in dataset.records
        for result in results_of(
            dataset,
            detections_in(
                record,
                np.clip(record.boxes + rng.uniform(-5, 5, record.boxes.shape), 0, SIDE),
                rng.uniform(0.1, 1, len(record.boxes)).tolist(),
                masks=False,
            ),
        )
    ]


class Pretended:
    """Stands in for training and evaluation, and tells which cells have come to them."""

    def __init__(self, monkeypatch: Any) -> None:
        self.images = images()  # as they are loaded
        self.trained: list[str] = []
        self.evaluated: list[str] = []
        self.at_start: Callable[[str], object] = lambda cell: None  # of a training
        self.at_evaluation: Callable[[str], object] = lambda cell: None
        monkeypatch.setattr(cells, "train", self._train)
        monkeypatch.setattr(cells, "restore_for_inference", self._restore)
        monkeypatch.setattr(cells, "evaluate_model", self._evaluate)
        monkeypatch.setattr(cells, "_images", lambda config: self.images)
        monkeypatch.setattr(work, "require", _no_pictures)  # they would be most of the time

    def _train(self, config: ExperimentConfig, workdir: Path) -> None:
        with locked(workdir):
            claim(workdir, config)
            cell = f"{workdir.parent.name}/{workdir.name}"
            self.at_start(cell)
            self.trained.append(cell)
            leave_result(workdir, config.steps, f"{workdir.parent.name[0]}{config.seed}")

    def _restore(self, workdir: Path, which: str) -> tuple[ExperimentConfig | None, Path, Metadata]:
        return None, workdir, Metadata(("class 0",), (3,), step=4, metrics={"average/bbox/AP": 0.25})

    def _evaluate(self, model: Any, data: Any, evaluation: Any, workdir: Path, dataset: Any, names: Any) -> Any:
        row, seed = workdir.parent.name, int(workdir.name.removeprefix("seed_"))
        self.at_evaluation(f"{row}/seed_{seed}")
        self.evaluated.append(f"{row}/seed_{seed}")
        found = detections(row, seed)
        return EvaluationResult(score_coco(images(), found, "bbox", EvaluationConfig()), found, self.images)


def _no_pictures(extra: str, purpose: object) -> None:
    raise UserError(f"{purpose} is not drawn here")


def leave_result(workdir: Path, steps: int, parameters: str, loss: float = 0.5) -> None:
    """Write what a run leaves at its end."""
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": steps, "loss": loss}) + "\n")
    (workdir / "starts.jsonl").write_text('{"step": 0, "weights": "0"}\n')
    hashes = {"buffers": "b", "average": None, "metrics": hash_metrics(repeatable_metrics(workdir))}
    (workdir / "result.json").write_text(json.dumps({"step": steps, "parameters": parameters} | hashes))


def with_seeds(plan: Plan, *seeds: int) -> Plan:
    return replace(plan, seeds=seeds)
