"""Every member of the family learns and detects: shapes, finite losses and gradients, padding, and devices."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mask_rcnn_jax.models import (
    DATA_AXIS,
    KeypointHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    ResNetConfig,
    Variables,
    architectures,
    detect,
    init,
    loss_terms,
    torchvision_v2,
)
from mask_rcnn_jax.structures import Batch
from tests.tiny import tiny_batch, tiny_model, tiny_pooler

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


def with_keypoints() -> MaskRCNNConfig:
    head = KeypointHeadConfig(pooler=tiny_pooler(14), num_keypoints=3, num_convs=1, channels=8)
    return replace(tiny_model(), keypoint_head=head)


FAMILY = {
    "c4": on_one_map(architectures.c4(replace(RESNET, depth=10), 3)),
    "dc5": on_one_map(architectures.dc5(RESNET, 3)),
    "v2 cascade with keypoints": torchvision_v2(architectures.cascade(with_keypoints())),
}


def batch_of(size: int) -> Batch:
    batch = tiny_batch(size)
    truth = batch.ground_truth
    corners, centre = truth.boxes[..., :2] + 1, truth.boxes.reshape(*truth.valid.shape, 2, 2).mean(2)
    places = np.stack([corners, centre, np.zeros_like(centre)], axis=2)
    seen = truth.valid[..., None] * np.array([1.0, 2.0, 0.0])
    keypoints = np.concatenate([places, seen[..., None]], axis=-1).astype(np.float32)
    return replace(batch, ground_truth=replace(truth, keypoints=keypoints))


@functools.cache
def compiled(name: str, devices: int, dtype: str = "float32"):
    """Losses, measures and gradients, with the batch shared by `devices`."""
    config = replace(FAMILY[name], dtype=dtype)

    def run(variables: Variables, batch: Batch):
        def total(params):
            terms, _ = loss_terms(config, Variables(params, variables.buffers), batch, None)
            values = {key: term.value for key, term in jax.lax.psum(terms, DATA_AXIS).items()}
            return sum(value for key, value in values.items() if key.startswith("loss/")), values

        return jax.grad(total, has_aux=True)(variables.params)

    mesh = Mesh(jax.devices()[:devices], (DATA_AXIS,))
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=P()))


@pytest.fixture(scope="module", params=sorted(FAMILY))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def variables(name) -> Variables:
    return init(FAMILY[name], jax.random.key(0))


def test_losses_are_finite_and_padded_slots_may_hold_anything(name, variables):
    batch = batch_of(2)
    gradients, values = compiled(name, 1)(variables, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, values)))
    assert values["loss/mask"] > 0
    truth = batch.ground_truth

    def fill(array: np.ndarray, value: float) -> np.ndarray:
        valid = truth.valid.reshape(*truth.valid.shape, *[1] * (array.ndim - 2))
        return np.where(valid, array, np.asarray(value, array.dtype))

    filled = replace(
        truth,
        boxes=fill(truth.boxes, 7),
        classes=fill(truth.classes, 1),
        masks=fill(truth.masks, 255),
        keypoints=fill(truth.keypoints, 2),
    )
    again = compiled(name, 1)(variables, replace(batch, ground_truth=filled))
    jax.tree.map(np.testing.assert_array_equal, again, (gradients, values))


def test_two_devices_agree_with_one():
    shared = "v2 cascade with keypoints"

    # In float64: batch norms over a few cells magnify rounding.
    def wide(x: jax.Array) -> jax.Array:
        return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    with jax.enable_x64(True):
        operands = jax.tree.map(wide, (init(FAMILY[shared], jax.random.key(0)), batch_of(2)))
        alone, together = (compiled(shared, devices, "float64")(*operands) for devices in (1, 2))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), together, alone)


def test_every_parameter_learns(name, variables):
    gradients, _ = compiled(name, 1)(variables, batch_of(2))
    # Classes that do not occur have no gradient, and a kernel is more than its classes; so leaf by leaf.
    silent = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.any(leaf)
    ]
    assert not silent


def test_detections_have_their_shapes(name, variables):
    config = replace(FAMILY[name], box_head=replace(FAMILY[name].box_head, score_threshold=0.0))
    found = jax.jit(functools.partial(detect, config))(
        variables, jnp.asarray(tiny_batch(2).images), jnp.array([[64, 64], [48, 64]])
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
