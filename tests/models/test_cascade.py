"""Cascade R-CNN's pieces against their definitions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import BoxHeadConfig, CascadeConfig, MaskRCNNConfig
from mask_rcnn_jax.models.heads.cascade import refine, relabel, scale_gradient
from mask_rcnn_jax.structures import GroundTruth

FIRST = BoxHeadConfig(class_agnostic=True)


def truth_of(boxes) -> GroundTruth:
    count = len(boxes)
    boxes = jnp.asarray(boxes, jnp.float32)
    return GroundTruth(boxes, jnp.arange(count), jnp.zeros((count, 1, 1), jnp.uint8), jnp.ones(count, bool))


def test_stages_are_the_papers():
    stages = CascadeConfig().stages(FIRST)
    assert [stage.foreground_iou for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.box_weights[0] for stage in stages] == [10.0, 20.0, 30.0]


def test_each_stage_has_its_own_threshold():
    # IoU with the ground truth: .55, .65 and .75.
    boxes = jnp.array([[0, 0, 100, 55], [0, 0, 100, 65], [0, 0, 100, 75]], jnp.float32)
    for stage, foreground in zip(CascadeConfig().stages(FIRST), ([1, 1, 1], [0, 1, 1], [0, 0, 1]), strict=True):
        rois = relabel(stage, 5, boxes, jnp.ones(3, bool), truth_of([[0, 0, 100, 100]]))
        np.testing.assert_array_equal(rois.foreground, np.array(foreground, bool))
        np.testing.assert_array_equal(rois.classes, np.where(foreground, 0, 5))


def test_boxes_that_became_empty_are_left_out():
    boxes = jnp.array([[5, 5, 5, 9], [0, 0, 10, 10]], jnp.float32)
    rois = relabel(FIRST, 5, boxes, jnp.ones(2, bool), truth_of([[0, 0, 10, 10]]))
    np.testing.assert_array_equal(rois.valid, [False, True])
    np.testing.assert_array_equal(rois.boxes[0], 0)


def test_refined_boxes_use_the_stages_weights_stay_inside_and_carry_no_gradient():
    boxes, size = jnp.array([[10, 10, 30, 50]], jnp.float32), jnp.array([60, 60])
    deltas = jnp.array([[[5.0, 0, 0, 0]]])
    for stage, x1 in zip(CascadeConfig().stages(FIRST), (20, 15, 10 + 10 / 3), strict=True):
        np.testing.assert_allclose(refine(stage, boxes, deltas, size)[0], [x1, 10, x1 + 20, 50], rtol=1e-6)
    np.testing.assert_allclose(refine(FIRST, boxes, 10 * deltas, size)[0, 0], 60)
    gradient = jax.grad(lambda d: jnp.sum(refine(FIRST, boxes, d, size)))(deltas)
    np.testing.assert_array_equal(gradient, 0)


def test_scale_gradient_leaves_the_value():
    x = jnp.array([0.1, -3.0, 1e20])
    np.testing.assert_array_equal(scale_gradient(x, 1 / 3), x)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(2 * scale_gradient(x, 1 / 3)))(x), 2 / 3)


def test_a_cascade_of_class_specific_boxes_is_refused():
    config = MaskRCNNConfig(box_head=FIRST, cascade=CascadeConfig())
    assert len(config.box_stages) == 3
    with pytest.raises(ValueError, match="class_agnostic"):
        replace(config, box_head=BoxHeadConfig())
