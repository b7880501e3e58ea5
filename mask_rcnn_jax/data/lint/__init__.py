"""Contents and defects of a COCO directory: `lint` reports, the other modules check."""

from mask_rcnn_jax.data.lint.findings import CHECKS, Finding, Report
from mask_rcnn_jax.data.lint.lint import lint
from mask_rcnn_jax.data.lint.text import describe

__all__ = ["CHECKS", "Finding", "Report", "describe", "lint"]
