"""Average precision and recall as COCO defines them, from detections or from a model and a dataset."""

from mask_rcnn_jax.evaluation.coco import EvaluationConfig, coco_results, evaluate, keypoint_sigmas, score_results
from mask_rcnn_jax.evaluation.run import EvaluationResult, evaluate_model
from mask_rcnn_jax.evaluation.table import format_table

__all__ = [
    "EvaluationConfig",
    "EvaluationResult",
    "coco_results",
    "evaluate",
    "evaluate_model",
    "format_table",
    "keypoint_sigmas",
    "score_results",
]
