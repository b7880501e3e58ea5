"""A study of two learning rates on synthetic shapes, and of whether a run comes to the same bits twice.

mask-rcnn study examples/study.py --workdir runs/study
"""

from dataclasses import replace

from mask_rcnn_jax.configs import shapes
from mask_rcnn_jax.studies import Study


def get_study() -> Study:
    return Study(
        config=replace(shapes.get_config(), steps=400, eval_every=0),
        rows={
            "base": {},
            "lr=5e-4": {"schedule.learning_rate": 5e-4},
            "lr=2e-3": {"schedule.learning_rate": 2e-3},
            "again": {},
        },
        seeds=range(3),
        metrics=("segm/AP", "bbox/AP"),
        equalities=[("base", "again")],
    )
