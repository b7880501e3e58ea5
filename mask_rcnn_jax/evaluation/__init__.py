"""Average precision and recall as COCO and LVIS define them, from detections or from a model and a dataset."""

from mask_rcnn_jax.evaluation.coco import EvaluationConfig, keypoint_sigmas
from mask_rcnn_jax.evaluation.run import EvaluationResult, check_stuff, evaluate_model
from mask_rcnn_jax.evaluation.score import evaluate, score_results
from mask_rcnn_jax.evaluation.table import format_table

__all__ = [
    "EvaluationConfig",
    "EvaluationResult",
    "check_stuff",
    "evaluate",
    "evaluate_model",
    "format_table",
    "keypoint_sigmas",
    "score_results",
]
