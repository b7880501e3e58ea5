"""ConvNeXt: sizes, its place under a pyramid, stochastic depth. `tests/conformance` compares it with torchvision's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import ConvNeXtConfig, FPNConfig, MaskRCNNConfig
from mask_rcnn_jax.pretrained import contradictions, conventions

CONFIG = ConvNeXtConfig(depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), layer_scale=0.5, feature_norms=False)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ConvNeXtConfig(), 28_589_128),
        (ConvNeXtConfig(depths=(3, 3, 27, 3)), 50_223_688),
        (ConvNeXtConfig(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)), 88_591_464),
    ],
    ids=["T", "S", "B"],
)
def test_parameters_are_those_that_torchvision_documents(config, parameters):
    """Of classifiers of 1000 classes; ours have four norms of features for one, and no last layer."""
    network = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    ours = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    last = config.channels[-1]
    assert ours == parameters - (last + 1) * 1000 + 2 * sum(config.channels[:-1])


def test_a_run_goes_on_from_another_with_the_same_conventions():
    config = MaskRCNNConfig(backbone=FPNConfig(CONFIG))
    assert contradictions(conventions(config), config) == []
    (line,) = contradictions(conventions(config), replace(config, channel_order="rgb"))
    assert line == "the weights were made with model.channel_order=bgr, the model has rgb"


def test_it_stands_under_a_pyramid_and_may_be_frozen():
    bottom_up = ConvNeXtConfig(
        depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), out_features=("stage2", "stage3"), freeze_at=2
    )
    pyramid = FPNConfig(bottom_up, channels=8)
    assert pyramid.out_strides == {"p3": 8, "p4": 16, "p5": 32}
    assert pyramid.size_divisor == 16
    network = nnx.eval_shape(lambda: pyramid.build(nnx.Rngs(0)))
    features = nnx.eval_shape(lambda network: network(jnp.zeros((1, 32, 48, 3))), network)
    assert {name: x.shape for name, x in features.items()} == {
        "p3": (1, 4, 6, 8),
        "p4": (1, 2, 3, 8),
        "p5": (1, 1, 2, 8),
    }
    trained = nnx.to_pure_dict(nnx.state(network, nnx.Param))["bottom_up"]
    assert set(trained) == {"stage2", "stage3", "norm_stage2", "norm_stage3"}


def test_blocks_are_left_out_of_images_at_random_in_training():
    """An image without a block has what the block was given; in the others what it adds is scaled up."""
    config = replace(CONFIG, depths=(1, 1, 1, 1), out_features=("stage1", "stage2"), feature_norms=False, drop_path=0.5)
    pyramid = FPNConfig(config, channels=8)
    assert config.draws
    assert pyramid.draws
    assert not CONFIG.draws
    network = config.build(nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)).repeat(64, axis=0), jnp.float32)
    apply = nnx.jit(lambda network, keys: config.apply(network, images, keys))
    keys = jax.random.split(jax.random.key(0), 64)
    plain, drawn = apply(network, None), apply(network, keys)
    # The first of four blocks is always there, the second is left out of a sixth of the images.
    np.testing.assert_allclose(drawn["stage1"], plain["stage1"], rtol=1e-5, atol=1e-6)
    without = network.stage2.downsample(plain["stage1"])
    left_out = np.isclose(drawn["stage2"], without, rtol=1e-5, atol=1e-5).all(axis=(1, 2, 3))
    assert 4 <= left_out.sum() <= 19  # binomial, 64 draws of 1/6: outside of it once in a thousand keys
    scaled = without + (plain["stage2"] - without) * 6 / 5
    np.testing.assert_allclose(drawn["stage2"][~left_out], scaled[~left_out], rtol=1e-4, atol=1e-5)
