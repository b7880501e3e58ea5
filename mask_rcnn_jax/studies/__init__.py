"""Studies: rows of settings, each trained with several seeds, and what tells them apart."""

from mask_rcnn_jax.studies.plan import Plan, Row, Study, load_plan, plan_of
from mask_rcnn_jax.studies.work import run_study

__all__ = ["Plan", "Row", "Study", "load_plan", "plan_of", "run_study"]
