"""The loss of masks against its formula."""

import math

import jax.numpy as jnp
import pytest

from mask_rcnn_jax.models import MaskHeadConfig
from mask_rcnn_jax.models.heads.mask import mask_losses
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs


@pytest.mark.parametrize(("soft", "target"), [(False, 1.0), (True, 0.6)])
def test_targets_are_thresholded_unless_they_are_soft(soft, target):
    boxes, classes, valid = jnp.array([[0.0, 0, 32, 32]]), jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    truth = GroundTruth(boxes, classes, jnp.full((1, 8, 8), 153, jnp.uint8), boxes, valid)  # 0.6 of every cell
    rois = SampledRoIs(boxes, classes, classes, valid, valid)
    terms = mask_losses(MaskHeadConfig(soft_targets=soft), jnp.full((1, 4, 4), 2.0), rois, truth)
    probability = 1 / (1 + math.exp(-2))
    expected = -target * math.log(probability) - (1 - target) * math.log(1 - probability)
    assert float(terms["loss/mask"].value) == pytest.approx(expected, rel=1e-6)
    assert float(terms["mask/accuracy"].value) == 1
