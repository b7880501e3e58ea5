"""Ablations of Mask R-CNN on nuclei (Data Science Bowl 2018), at half the size and for a sixth of the steps.

mask-rcnn study examples/ablations_nuclei.py --workdir runs/ablations_nuclei

Data and weights lie where `configs/nuclei_r18_fpn.py` has them: `data/nuclei`, `data/weights`.
"""

from dataclasses import replace

from ablations import METRICS, of_pyramid

from mask_rcnn_jax.configs import nuclei_r18_fpn
from mask_rcnn_jax.studies import Study

_STEPS = 200


def get_study() -> Study:
    config = nuclei_r18_fpn.get_config()
    data = replace(
        config.data,
        short_side=(128, 160, 192, 224, 256),
        crop=(128, 128),
        canvas=(128, 128),
        short_side_eval=192,
        canvas_eval=(192, 288),
    )
    config = replace(config, data=data, steps=_STEPS, eval_every=0, checkpoint_every=_STEPS)
    return Study(config=config, rows=of_pyramid(config), seeds=range(3), metrics=METRICS)
