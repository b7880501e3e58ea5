"""Every member of the family learns and detects: shapes, finite losses and gradients, padding, and devices."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mask_rcnn_jax.models import (
    FederatedConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    ResNetConfig,
    SemanticHeadConfig,
    SimplePyramidConfig,
    VGGConfig,
    ViTConfig,
    architectures,
    detect,
    init,
    torchvision_v2,
)
from mask_rcnn_jax.structures import IGNORED, Batch
from mask_rcnn_jax.training import ExperimentConfig, SGDConfig
from tests.stepping import take_steps
from tests.tiny import one_map_model, tiny_batch, tiny_experiment, tiny_model

RESNET = ResNetConfig(depth=50, width=4, norm=NormConfig(kind="group_norm", groups=2), freeze_at=0)


def on_one_map(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The architecture of `config` at the size of the tiny model."""
    tiny = tiny_model()
    rpn, box = config.rpn, config.box_head
    return replace(
        tiny,
        backbone=config.backbone,
        rpn=replace(tiny.rpn, features=rpn.features, sizes=((8.0, 16.0, 24.0, 32.0, 48.0),)),
        box_head=replace(tiny.box_head, pooler=box.pooler, num_fcs=box.num_fcs),
        mask_head=replace(tiny.mask_head, pooler=config.mask_head.pooler),
        res5_on_rois=config.res5_on_rois,
    )


def with_keypoints(config: MaskRCNNConfig) -> MaskRCNNConfig:
    head = KeypointHeadConfig(config.mask_head.pooler, num_keypoints=3, num_convs=1, channels=8)
    return replace(config, keypoint_head=head)


def on_vgg() -> MaskRCNNConfig:
    """With class-agnostic masks, from the pooler of the boxes, losses of how boxes overlap, and a federated one."""
    config = architectures.vgg(VGGConfig(depth=11, width=4, freeze_at=0), 3)
    pooler = replace(config.box_head.pooler, output_size=14)
    config = on_one_map(replace(config, mask_head=MaskHeadConfig(pooler)))
    rpn, box_head = replace(config.rpn, box_loss="giou"), replace(config.box_head, box_loss="ciou")
    box_head = replace(box_head, class_loss="sigmoid", federated=FederatedConfig(num_classes=4))
    return replace(config, rpn=rpn, box_head=box_head, mask_head=replace(config.mask_head, class_agnostic=True))


def on_c5() -> MaskRCNNConfig:
    """At a stride of 32, from the highest samples of RoIAlign, with masks by a softmax."""
    config = on_one_map(architectures.c5(replace(RESNET, depth=10), 3))
    box, mask = (replace(head.pooler, reduction="max") for head in (config.box_head, config.mask_head))
    heads = replace(config.box_head, pooler=box), replace(config.mask_head, pooler=mask, mask_loss="softmax")
    return replace(config, box_head=heads[0], mask_head=heads[1])


def with_batch_norm() -> MaskRCNNConfig:
    """On one map, with all heads, that for stuff among them, and every place of a batch norm but a pyramid's."""
    norm, one_map = NormConfig(kind="batch_norm"), one_map_model()
    config = replace(
        one_map,
        backbone=replace(one_map.backbone, norm=norm),
        box_head=replace(one_map.box_head, num_convs=1, conv_channels=8, norm=norm),
        mask_head=replace(one_map.mask_head, norm=norm),
        heads=(SemanticHeadConfig(features=("res3",), num_kinds=3, channels=8, norm=norm),),
    )
    return with_keypoints(config)


def on_vit() -> MaskRCNNConfig:
    """The parts of ViTDet at the size of the tiny model."""
    tiny, config = tiny_model(), architectures.vitdet(ViTConfig())
    vit = ViTConfig(
        channels=16, depth=2, heads=2, window=3, global_blocks=(1,), image_size=64, pretrained_size=48, drop_path=0.2
    )
    norm = config.box_head.norm
    return replace(
        tiny,
        backbone=SimplePyramidConfig(vit, channels=16),
        rpn=replace(tiny.rpn, features=("p3", "p4", "p5"), num_convs=config.rpn.num_convs),
        box_head=replace(tiny.box_head, num_convs=1, conv_channels=8, num_fcs=1, norm=norm),
        mask_head=replace(tiny.mask_head, norm=norm),
    )


FAMILY = {
    "c4": on_one_map(architectures.c4(replace(RESNET, depth=10), 3)),
    "c5 with maxima and a softmax": on_c5(),
    "dc5": on_one_map(architectures.dc5(RESNET, 3)),
    "vgg": on_vgg(),
    "vitdet": on_vit(),
    "batch norm": with_batch_norm(),
    "v2 cascade with keypoints": torchvision_v2(architectures.cascade(with_keypoints(tiny_model()))),
}


def batch_of(size: int) -> Batch:
    batch = tiny_batch(size)
    truth = batch.ground_truth
    corners, centre = truth.boxes[..., :2] + 1, truth.boxes.reshape(*truth.valid.shape, 2, 2).mean(2)
    places = np.stack([corners, centre, np.zeros_like(centre)], axis=2)
    seen = truth.valid[..., None] * np.array([1.0, 2.0, 0.0])
    keypoints = np.concatenate([places, seen[..., None]], axis=-1).astype(np.float32)
    # Kinds by brightness; a part of the image is ignored, a larger one in the second.
    stuff = (batch.images.sum(axis=-1) // 300).astype(np.uint8)
    for row in range(size):
        stuff[row, : 8 + 16 * row] = IGNORED
    return replace(batch, ground_truth=replace(truth, keypoints=keypoints, semantic=stuff))


SHARED = "batch norm"  # by two devices


def experiment(name: str, remat: tuple[str, ...]) -> ExperimentConfig:
    """Without weight decay: the momentum after a step is the gradient.

    In float64 for the member that devices share: in float32 some proposal lies within rounding of a threshold, or an
    activation of zero, on one processor or another, and what follows is not rounding.
    """
    model = replace(FAMILY[name], dtype="float64" if name == SHARED else "float32", remat=remat)
    return tiny_experiment(Path("unused"), model=model, batch_size=2, optimizer=SGDConfig(weight_decay=0.0))


def train(
    name: str, devices: int = 1, remat: tuple[str, ...] = (), change: Callable[[Batch], Batch] = lambda batch: batch
):
    """What the first step makes of a member, and measures."""
    config = experiment(name, remat)
    with jax.enable_x64(config.model.dtype == "float64"):
        return take_steps(config, devices, lambda _: change(batch_of(2)), steps=1)


# The others are trained in `tests/conformance`, too.
TRAINED = [pytest.param(name, marks=[] if name == SHARED else [pytest.mark.slow]) for name in sorted(FAMILY)]


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    """A member, and the first step."""
    return request.param, *train(request.param)


def test_losses_are_finite_and_padded_slots_may_hold_anything(trained):
    name, state, history = trained
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, history)))
    assert history[0]["loss/mask"] > 0
    assert ("loss/semantic" in history[0]) == bool(FAMILY[name].heads)

    def filled(batch: Batch) -> Batch:
        truth = batch.ground_truth

        def fill(array: np.ndarray, value: float) -> np.ndarray:
            valid = truth.valid.reshape(*truth.valid.shape, *[1] * (array.ndim - 2))
            return np.where(valid, array, np.asarray(value, array.dtype))

        truth = replace(
            truth,
            boxes=fill(truth.boxes, 7),
            classes=fill(truth.classes, 1),
            masks=fill(truth.masks, 255),
            keypoints=fill(truth.keypoints, 2),
        )
        return replace(batch, ground_truth=truth)

    jax.tree.map(np.testing.assert_array_equal, train(name, change=filled), (state, history))


def test_every_parameter_learns(trained):
    _, state, _ = trained
    # Classes that do not occur have no gradient, and a kernel is more than its classes; so leaf by leaf.
    silent = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(optax.tree.get(state.optimizer, "trace"))
        if not np.any(leaf)
    ]
    assert not silent


@pytest.mark.parametrize("trained", [SHARED], indirect=True, scope="module")
def test_two_devices_that_compute_networks_again_agree_with_one_that_does_not(trained):
    """Losses use global counts, gradients are summed once, sampling follows the example, and batch norms and their
    statistics are of the whole batch, once.
    """
    _, one, history_of_one = trained
    two, history = train(SHARED, devices=2, remat=("backbone", "rpn", "box_head", *FAMILY[SHARED].all_heads))
    # Sums over devices are of float32, as parameters and their gradients are.
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9 + 1e-6 * np.max(np.abs(a)))
    assert history == [pytest.approx(history_of_one[0], rel=1e-6, abs=1e-9)]


# ViTDet's stages are compared in `tests/conformance`.
DETECTING = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "vitdet" else [])
    for name in sorted(FAMILY.keys() - {SHARED})
]


@pytest.mark.parametrize("name", DETECTING)
def test_detections_have_their_shapes(name):
    config = replace(FAMILY[name], box_head=replace(FAMILY[name].box_head, score_threshold=0.0))
    found = jax.jit(functools.partial(detect, config))(
        init(config, jax.random.key(0)), jnp.asarray(tiny_batch(2).images), jnp.array([[64, 64], [48, 64]])
    )
    assert found.boxes.shape == (2, 10, 4)
    assert found.masks.shape == (2, 10, *([14, 14] if name == "c4" else [28, 28]))
    assert np.asarray(found.valid).any()
    np.testing.assert_array_equal(np.asarray(found.boxes)[~np.asarray(found.valid)], 0)
    assert np.all(np.asarray(found.boxes[1, :, 3]) <= 48)
    if FAMILY[name].keypoint_head:
        assert found.keypoints.shape == (2, 10, 3, 3)
        kept = np.asarray(found.valid)
        boxes, places = np.asarray(found.boxes)[kept], np.asarray(found.keypoints)[kept]
        assert np.all(places[..., 0] >= boxes[:, None, 0])
        assert np.all(places[..., 1] <= boxes[:, None, 3])
