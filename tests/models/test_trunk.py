"""A network that is applied to each RoI (R-CNN): torchvision's on crops, some crops at a time, and what is refused."""

import functools
import importlib
from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PoolerConfig,
    ResNetConfig,
    SwinConfig,
    VGGConfig,
    abstract,
    architectures,
    init,
    networks,
    rcnn,
)
from mask_rcnn_jax.pretrained import load_weights
from tests.models.test_vgg import CONVENTIONS, reference, tensors_of

RESNET = ResNetConfig(depth=10, width=4, norm=NormConfig(kind="group_norm", groups=2))


def small(trunk=RESNET, side: int = 32) -> MaskRCNNConfig:
    config = architectures.rcnn(trunk, 2)
    pooler = replace(config.box_head.pooler, output_size=side, context=3)
    return replace(config, box_head=replace(config.box_head, pooler=pooler))


def pooled(config, variables, images, boxes):
    """What the box head is given of each RoI."""
    model = networks(config, variables)
    sizes = jnp.full((len(images), 2), images.shape[1])
    return rcnn.see(config, model, images, sizes).pool(config.box_head.pooler, boxes)


def test_a_vgg_on_crops_is_torchvisions(torchvision: ModuleType, tmp_path):
    import torch

    model = reference(11, 4)
    np.savez(tmp_path / "vgg.npz", **tensors_of(model))
    config = replace(architectures.rcnn(VGGConfig(depth=11, width=4), 2), **CONVENTIONS)
    variables, lines = load_weights(tmp_path / "vgg.npz", config, init(config, jax.random.key(0)), ["this", "that"])
    assert lines == [f"{16 + 4} tensors loaded"]
    images = np.random.default_rng(0).integers(0, 256, (1, 192, 192, 3)).astype(np.uint8)
    boxes = jnp.array([[[0.0, 0, 192, 192], [-0.0, 0, 96, 192]]])  # the second is stretched
    features = jax.jit(functools.partial(pooled, config))(variables, jnp.asarray(images), boxes)
    head = networks(config, variables).box_head
    x = jax.nn.relu(head.fc2(jax.nn.relu(head.fc1(features.reshape(2, -1)))))

    # 192 pixels are the inner side of 224: the first crop is the image with a border of zeros.
    mean, deviation = np.array(config.pixel_mean, np.float32), np.array(config.pixel_std, np.float32)
    normalised = torch.from_numpy(((images[0] - mean) / deviation).transpose(2, 0, 1)[None])
    first = torch.nn.functional.pad(normalised, (16,) * 4)
    # Twice as wide as what it shows, without clamping at the edges.
    wide = torch.nn.functional.interpolate(
        torch.nn.functional.pad(normalised, (16, 0, 16, 16)), (224, 416), mode="bilinear"
    )[..., 16:240]
    with torch.no_grad():
        made = model.features(torch.cat([first, wide]))
        expected = model.classifier[:5](made.flatten(1)).numpy()
    np.testing.assert_allclose(features[0], made.numpy().transpose(0, 2, 3, 1), atol=1e-4 * float(made.abs().max()))
    np.testing.assert_allclose(x, expected, atol=1e-4 * abs(expected).max())


def test_crops_at_a_time_are_all_crops(monkeypatch):
    config = small()
    variables = init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (2, 48, 48, 3)), jnp.uint8)
    boxes = jnp.sort(jnp.asarray(rng.uniform(0, 48, (2, 5, 2, 2)), jnp.float32), axis=2).reshape(2, 5, 4)
    whole = jax.jit(functools.partial(pooled, config))(variables, images, boxes)
    assert whole.shape == (2, 5, 1, 1, 32)
    module = importlib.import_module(networks.__module__)  # by its name it is the function
    monkeypatch.setattr(module, "_POOLED_AT_ONCE", 2 * 2 * 32 * 32)
    in_turn = jax.jit(functools.partial(pooled, config))(variables, images, boxes)
    np.testing.assert_allclose(in_turn, whole, rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.round(np.asarray(whole), 4), axis=1).reshape(2, -1)) == 2


def test_what_is_frozen_is_a_buffer_and_of_the_same_path():
    def paths(tree):
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)}

    free, fixed = abstract(small()), abstract(replace(small(), freeze=("trunk", "box_head/box_deltas")))
    assert paths(free.params) == paths(fixed.params) | paths(fixed.buffers)
    assert paths(fixed.params) == {"box_head/class_logits/kernel", "box_head/class_logits/bias"}
    with pytest.raises(UserError, match="freeze: the model has no part box_head/fc9"):
        abstract(replace(small(), freeze=("box_head/fc9",)))


def test_masks_may_be_made_of_what_the_trunk_makes():
    config = small(VGGConfig(depth=11, width=4), 64)
    config = replace(config, mask_head=MaskHeadConfig(config.box_head.pooler, num_convs=0, channels=4))
    assert config.inputs.of_rois(config.box_head.pooler) == (32, 2)
    assert abstract(config).params["mask_head"]["deconv"]["kernel"].shape == (2, 2, 32, 4)
    assert abstract(config).params["box_head"]["fc1"]["kernel"].shape == (2 * 2 * 32, 256)


def test_trunks_that_cannot_be_applied_to_rois_are_refused():
    config = small()
    with pytest.raises(
        ValueError, match=r"trunk\.out_features: heads take one feature of ResNetConfig, not res2, res5"
    ):
        replace(config, trunk=replace(RESNET, out_features=("res2", "res5")))
    with pytest.raises(ValueError, match="trunk takes no batch norm"):
        replace(config, trunk=replace(config.trunk, norm=NormConfig(kind="batch_norm")))
    swin = SwinConfig(depths=(1, 1, 1, 1), channels=8, heads=(1, 1, 1, 1), out_features=("stage4",))
    with pytest.raises(ValueError, match="draws nothing at random, which SwinConfig does in training: set its drop"):
        replace(config, trunk=swin)
    assert replace(config, trunk=replace(swin, drop_path=0.0)).inputs.of_pooled == (64, 32)
    with pytest.raises(ValueError, match="output_size must be a multiple of 32, as VGGConfig asks"):
        small(VGGConfig(width=4), 48)
    box_head = replace(config.box_head, pooler=PoolerConfig(), class_agnostic=True, class_loss="hinge")
    with pytest.raises(ValueError, match="trunk is applied to what has 3 channels"):
        replace(config, backbone=FPNConfig(RESNET), box_head=box_head)
    with_svms = replace(MaskRCNNConfig(), box_head=box_head)
    with pytest.raises(ValueError, match="the hinge loss counts the RoIs of one box head"):
        architectures.cascade(with_svms)
