"""The comparisons notice what others got wrong: with Detectron2's convention, or a mistake, a row does not hold."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from tests.conformance import needed

needed.torchvision()

from mask_rcnn_jax.models import MaskRCNNConfig, Variables  # noqa: E402
from tests.conformance import stages  # noqa: E402
from tests.conformance.sources import Case, case  # noqa: E402

pytestmark = pytest.mark.usefixtures("shared")

V1, EPSILON_0 = "torchvision maskrcnn v1, narrow", "torchvision maskrcnn v1, narrow, epsilon 0"


def configured(**changes: dict) -> Callable[[Case], Case]:
    """Changes of the parts of the configuration, such as `rpn={"nms_iou": 0.6}`."""

    def change(original: Case) -> Case:
        parts = {part: replace(getattr(original.config, part), **fields) for part, fields in changes.items()}
        return with_config(original, replace(original.config, **parts))

    return change


def with_config(original: Case, config: MaskRCNNConfig) -> Case:
    return replace(original, source=replace(original.source, config=config))


def with_backbone(**changes) -> Callable[[Case], Case]:
    def change(original: Case) -> Case:
        backbone = original.config.backbone
        bottom_up = replace(backbone.bottom_up, **changes)
        return with_config(original, replace(original.config, backbone=replace(backbone, bottom_up=bottom_up)))

    return change


def pooled(head: str, **changes) -> Callable[[Case], Case]:
    def change(original: Case) -> Case:
        part = getattr(original.config, head)
        return configured(**{head: {"pooler": replace(part.pooler, **changes)}})(original)

    return change


def with_leaf(path: str, wrong: Callable[[jax.Array], jax.Array]) -> Callable[[Case], Case]:
    """Changes every variable whose path ends so."""

    def change(original: Case) -> Case:
        def leaf(key, value):
            return wrong(value) if jax.tree_util.keystr(key, simple=True, separator="/").endswith(path) else value

        trees = (original.variables.params, original.variables.buffers)
        return replace(original, variables=Variables(*(jax.tree_util.tree_map_with_path(leaf, x) for x in trees)))

    return change


TRAPS = {
    "the stride in the 1x1 convolution": ("backbone", V1, with_backbone(stride_in_1x1=True)),
    "an epsilon where the published weights have none": (
        "backbone",
        EPSILON_0,
        lambda original: with_backbone(norm=replace(original.config.backbone.bottom_up.norm, epsilon=1e-5))(original),
    ),
    "statistics left as they were initialised": ("backbone", V1, with_leaf("norm/mean", jnp.zeros_like)),
    "a kernel turned half round": ("RPN head", V1, with_leaf("rpn/conv1/conv/kernel", lambda x: x[::-1, ::-1])),
    "anchors that are not rounded": ("anchors", V1, configured(rpn={"rounded_anchors": False})),
    "nominal strides of anchors": ("anchors", V1, configured(rpn={"anchor_stride": "nominal"})),
    "another threshold of the proposals' NMS": ("proposals", V1, configured(rpn={"nms_iou": 0.68})),
    "proposals in training as few as in testing": ("proposals", V1, configured(rpn={"post_nms_train": 1000})),
    "RoIAlign with half-pixel alignment": ("pooling", V1, pooled("box_head", aligned=True)),
    "RoIAlign with adaptive sampling": ("pooling", V1, pooled("mask_head", sampling_ratio=0)),
    "RoIs on another level": ("pooling", EPSILON_0, pooled("box_head", canonical_size=256.0)),
    "background first": ("box head", V1, with_leaf("class_logits/bias", lambda x: jnp.roll(x, 1))),
    "RoI features flattened channel first": (
        "box head",
        V1,
        with_leaf("fc1/kernel", lambda x: x.reshape(7, 7, -1, x.shape[1]).transpose(2, 0, 1, 3).reshape(x.shape)),
    ),
    "other weights of the box coding": (
        "final boxes",
        V1,
        configured(box_head={"box_weights": (10.0, 10.0, 5.0, 4.9)}),
    ),
    "another threshold of the detections' NMS": ("final boxes", V1, configured(box_head={"nms_iou": 0.49})),
    "a deconvolution that is transposed": ("mask head", V1, with_leaf("deconv/kernel", lambda x: x.swapaxes(0, 1))),
    "masks pasted as Detectron2 pastes them": ("pasting", V1, configured(mask_head={"paste": "detectron2"})),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_that_is_sprung_breaks_a_row(trap: str):
    stage, name, change = TRAPS[trap]
    sprung = change(case(name))
    assert not all(row.ok for row in stages.STAGES[stage](sprung))
