"""Evaluates a model on a dataset: what training does now and then, and `eval.py` once."""

from dataclasses import dataclass
from typing import Any

import jax

from mask_rcnn_jax.data import CocoDataset, DataConfig, eval_batches
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation.coco import EvaluationConfig, evaluate
from mask_rcnn_jax.inference import predict
from mask_rcnn_jax.models import MaskRCNNConfig, Variables


@dataclass(frozen=True)
class EvaluationResult:
    metrics: dict[str, float]  # by name, see `evaluation.coco`
    results: list[dict[str, Any]]  # the detections, as in a COCO results file


def evaluate_model(
    model: MaskRCNNConfig, data: DataConfig, evaluation: EvaluationConfig, variables: Variables, dataset: CocoDataset
) -> EvaluationResult:
    """Detects in every image of `dataset` and compares with its annotations.

    Raises UserError when the dataset has another number of classes than the model, or an image cannot be used.
    """
    if len(dataset.categories) != model.num_classes:
        raise UserError(
            f"{dataset.annotation_file} has {len(dataset.categories)} categories but the model {model.num_classes};"
            " evaluate on annotations with the categories the model was trained on"
        )
    devices = jax.device_count()
    # No more images at once than there are: a small dataset would be padded.
    per_device = min(evaluation.images_per_device, -(-len(dataset.records) // devices))
    batches = eval_batches(dataset, data, per_device * devices)
    try:
        predictions = predict(model, variables, batches)
        convention = model.mask_head.paste if model.mask_head else "detectron2"
        metrics, results = evaluate(dataset, predictions, evaluation, convention)
    finally:
        batches.close()
    return EvaluationResult(metrics, results)
