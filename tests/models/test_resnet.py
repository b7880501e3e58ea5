"""Backbones: shapes and strides as promised, where blocks stride, what is frozen."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import FPNConfig, NormConfig, ResNetConfig
from mask_rcnn_jax.models.backbones.resnet import STAGES
from mask_rcnn_jax.models.layers.norms import BatchNorm


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101])
def test_features_have_the_promised_channels_and_strides(depth):
    config = ResNetConfig(depth=depth, width=4)
    shapes = jax.eval_shape(lambda: config.build(nnx.Rngs(0))(jnp.zeros((2, 64, 96, 3))))
    assert {name: shape.shape for name, shape in shapes.items()} == {
        name: (2, 64 // config.out_strides[name], 96 // config.out_strides[name], config.out_channels[name])
        for name in STAGES
    }


# Counts of torchvision's models without their classifier: 11,689,512, 21,797,672, 25,557,032, 44,549,160, 60,192,808
# and for resnext101_32x8d 88,791,336 in all, less 513,000 (ResNet-18 and 34) or 2,049,000 for `fc`.
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ResNetConfig(depth=18), 11_176_512),
        (ResNetConfig(depth=34), 21_284_672),
        (ResNetConfig(depth=50), 23_508_032),
        (ResNetConfig(depth=101), 42_500_160),
        (ResNetConfig(depth=152), 58_143_808),
        (ResNetConfig(depth=101, groups=32, width_per_group=8), 86_742_336),
    ],
)
def test_number_of_parameters_is_torchvisions(config, count):
    config = replace(config, norm=NormConfig(kind="batch_norm"), freeze_at=0)
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


@pytest.mark.parametrize(("in_1x1", "strided"), [(True, "conv1"), (False, "conv2")])
def test_the_configured_convolution_of_a_bottleneck_strides(in_1x1, strided):
    model = nnx.eval_shape(lambda: ResNetConfig(depth=50, width=4, stride_in_1x1=in_1x1).build(nnx.Rngs(0)))
    block = model.res3.block1
    assert {name for name in ("conv1", "conv2", "conv3") if getattr(block, name).conv.window.stride == 2} == {strided}


def test_dilation_keeps_the_stride_and_widens_what_res5_sees():
    config = ResNetConfig(depth=50, width=4, res5_dilation=2, out_features=("res4", "res5"))
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    shapes = jax.eval_shape(lambda: config.build(nnx.Rngs(0))(jnp.zeros((1, 64, 96, 3))))
    assert {name: shape.shape for name, shape in shapes.items()} == {"res4": (1, 4, 6, 64), "res5": (1, 4, 6, 128)}
    assert config.out_strides == {"res4": 16, "res5": 16}
    assert all(getattr(model.res5, f"block{i}").conv2.conv.window.dilation == 2 for i in (1, 2, 3))


def test_nothing_is_built_beyond_the_last_feature():
    config = ResNetConfig(depth=50, width=4, out_features=("res4",))
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    assert not hasattr(model, "res5")
    with pytest.raises(ValueError, match="res6"):
        ResNetConfig(out_features=("res6",))


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at(freeze_at):
    config = ResNetConfig(depth=18, width=4, norm=NormConfig(kind="none"), freeze_at=freeze_at)
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))), nnx.Param))
    assert set(params) == set(("stem", *STAGES)[freeze_at:])


def test_batch_norms_of_frozen_stages_observe_nothing_in_training():
    config = ResNetConfig(depth=18, width=4, norm=NormConfig(kind="batch_norm"), freeze_at=2)
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    model.set_attributes(use_running_average=False, raise_if_not_found=False)  # as training does
    norms = [(path[0], part) for path, part in nnx.iter_modules(model) if isinstance(part, BatchNorm)]
    assert {stage for stage, norm in norms if not norm.observes} == {"stem", "res2"}
    assert {stage for stage, norm in norms if norm.observes} == {"res3", "res4", "res5"}


def test_fpn_adds_the_coarser_level_and_subsamples_p6():
    config = FPNConfig(bottom_up=ResNetConfig(depth=18, width=4), channels=8)
    model = config.build(nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    features, bottom_up = nnx.jit(lambda model, images: (model(images), model.bottom_up(images)))(model, images)
    assert {name: f.shape for name, f in features.items()} == {
        name: (1, 64 // stride, 64 // stride, 8) for name, stride in config.out_strides.items()
    }
    np.testing.assert_array_equal(features["p6"], features["p5"][:, ::2, ::2])
    coarse = np.asarray(model.lateral5(bottom_up["res5"]))
    merged = model.lateral4(bottom_up["res4"]) + np.kron(coarse, np.ones((1, 2, 2, 1), np.float32))
    np.testing.assert_allclose(features["p4"], model.output4(merged), rtol=1e-4, atol=1e-5)


def test_fpn_names_the_multiple_that_image_sides_need():
    model = FPNConfig(bottom_up=ResNetConfig(depth=18, width=4), channels=8).build(nnx.Rngs(0))
    with pytest.raises(ValueError, match="multiples of 32"):
        model(jnp.zeros((1, 48, 64, 3)))


def test_fpn_stands_on_the_stages_that_are_asked_for():
    bottom_up = ResNetConfig(depth=10, width=4, out_features=("res3", "res4"))
    config = FPNConfig(bottom_up=bottom_up, channels=8)
    assert config.out_strides == {"p3": 8, "p4": 16, "p5": 32}
    features = jax.eval_shape(lambda: config.build(nnx.Rngs(0))(jnp.zeros((1, 48, 64, 3))))
    assert {name: feature.shape[1:3] for name, feature in features.items()} == {
        "p3": (6, 8),
        "p4": (3, 4),
        "p5": (2, 2),
    }
    with pytest.raises(ValueError, match="twice the stride of the one before, not res2 4, res4 16"):
        FPNConfig(bottom_up=replace(bottom_up, out_features=("res2", "res4")))
    dilated = ResNetConfig(depth=50, width=4, res5_dilation=2)
    with pytest.raises(ValueError, match="not res2 4, res3 8, res4 16, res5 16"):
        FPNConfig(bottom_up=dilated)
