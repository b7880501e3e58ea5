"""The plain ViT and the simple pyramid: what the recorded outputs of Detectron2 in tests/conformance do not show."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import (
    FPNConfig,
    NormConfig,
    ResNetConfig,
    SimplePyramidConfig,
    VGGConfig,
    ViTConfig,
    architectures,
)
from mask_rcnn_jax.models.backbones.vit import Attention
from mask_rcnn_jax.training import AdamWConfig
from tests.models.test_family import FAMILY
from tests.stepping import take_steps
from tests.tiny import tiny_batch, tiny_experiment

TINY = ViTConfig(
    channels=8, depth=2, heads=2, window=3, global_blocks=(1,), image_size=64, pretrained_size=48, drop_path=0.0
)
VIT_L = ViTConfig(channels=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23), drop_path=0.4)


@pytest.mark.parametrize(("config", "documented"), [(ViTConfig(), 86_567_656), (VIT_L, 304_326_632)], ids=["B", "L"])
def test_parameters_are_those_that_torchvision_documents(config, documented):
    """Of classifiers of 1000 classes with a class token, its position, and a last norm; ours have relative positions,
    two tables a block.
    """
    network = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    ours = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    windows, everywhere = config.depth - len(config.global_blocks), len(config.global_blocks)
    tables = 2 * (windows * (2 * 14 - 1) + everywhere * (2 * 64 - 1)) * config.channels // config.heads
    assert ours == documented - (config.channels + 1) * 1000 - 4 * config.channels + tables


def test_padding_of_windows_is_attended_to_and_left_out_again():
    """As in the reference, tokens beyond the map are zeros after the norm, whose keys and values are the biases."""
    rng = np.random.default_rng(0)
    network = Attention(TINY, 0, rngs=nnx.Rngs(0))
    assert not np.any(network.relative_rows[...])
    assert not np.any(network.relative_columns[...])
    state = nnx.state(network)
    nnx.update(network, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), state))
    x = rng.normal(size=(1, 4, 5, 8)).astype(np.float32)
    found = np.asarray(nnx.jit(lambda network, x: network(x))(network, jnp.asarray(x)))
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(network)))
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    padded = np.zeros((6, 6, 8))
    padded[:4, :5] = (normed * params["norm"]["scale"] + params["norm"]["bias"])[0]
    qkv = padded @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    q, k, v = (part.reshape(6, 6, 2, 4) for part in np.split(qkv, 3, axis=-1))
    expected = np.zeros((4, 5, 2, 4))
    for y, x_, head in np.ndindex(4, 5, 2):
        top, left = y // 3 * 3, x_ // 3 * 3
        window = [(u, w) for u in range(top, top + 3) for w in range(left, left + 3)]
        query = q[y, x_, head]
        logits = [
            query @ k[u, w, head] / 2
            + query @ params["relative_rows"][y - u + 2]
            + query @ params["relative_columns"][x_ - w + 2]
            for u, w in window
        ]
        weights = np.exp(logits) / np.exp(logits).sum()
        expected[y, x_, head] = sum(weight * v[u, w, head] for weight, (u, w) in zip(weights, window, strict=True))
    expected = expected.reshape(4, 5, 8) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_branches_are_left_out_of_images_at_random_in_training():
    """Of the first block never, of the last each on its own: an image has one of four results."""
    config = replace(TINY, drop_path=0.5)
    assert (config.draws, SimplePyramidConfig(config, channels=4).draws, TINY.draws) == (True, True, False)
    network, copies = config.build(nnx.Rngs(0)), 96
    # Deviations of .02 would leave what the branches add within rounding.
    state = nnx.state(network)
    rng = np.random.default_rng(0)
    nnx.update(network, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), state))
    image = jnp.asarray(rng.normal(size=(1, 32, 32, 3)), jnp.float32)

    @nnx.jit
    def run(network, image, keys):
        """What the keys make of copies of the image, no keys of it, and branches that are left out or doubled."""
        before = network.block1(network.tokens(image), None)
        attended, mlp = network.block2.attention(before), network.block2.mlp
        whole, kinds = before + attended, (before, before + 2 * attended)
        kinds = [*kinds, *(kind + 2 * mlp(kind) for kind in kinds)]
        drawn = config.apply(network, image.repeat(copies, axis=0), keys)["last"]
        return drawn, config.apply(network, image, None)["last"], whole + mlp(whole), kinds

    drawn, plain, whole, expected = run(network, image, jax.random.split(jax.random.key(0), copies))
    kinds = [np.isclose(drawn, kind, rtol=1e-3, atol=1e-3).all(axis=(1, 2, 3)) for kind in expected]
    assert np.sum(kinds) == copies
    assert all(10 <= np.sum(kind) <= 40 for kind in kinds)  # binomial, 96 draws of 1/4: outside once in 2,000 keys
    np.testing.assert_allclose(plain, whole, rtol=1e-4, atol=1e-4)


def test_the_pyramid_stands_on_any_map():
    pyramid = SimplePyramidConfig(VGGConfig(depth=11, width=4, out_features=("conv5",)), channels=8)
    assert pyramid.out_strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert (pyramid.size_divisor, pyramid.draws, pyramid.layers) == (32, False, 0)
    network = nnx.eval_shape(lambda: pyramid.build(nnx.Rngs(0)))
    features = nnx.eval_shape(lambda network: network(jnp.zeros((1, 64, 96, 3))), network)
    assert {name: x.shape for name, x in features.items()} == {
        "p2": (1, 16, 24, 8),
        "p3": (1, 8, 12, 8),
        "p4": (1, 4, 6, 8),
        "p5": (1, 2, 3, 8),
        "p6": (1, 1, 2, 8),
    }
    with pytest.raises(ValueError, match=r"multiples of 32, not \(48, 64\)"):
        nnx.eval_shape(lambda network: network(jnp.zeros((1, 48, 64, 3))), network)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ViTConfig(heads=7), "channels 768 must be a multiple of heads 7"),
        (lambda: ViTConfig(depth=6), "global_blocks are from 0 to depth - 1, 5, not 8"),
        (lambda: ViTConfig(image_size=1000), "image_size 1000 must be a multiple of patch 16"),
        (
            lambda: SimplePyramidConfig(ResNetConfig()),
            "one feature, whose stride is a power of 2 from 4 on, not res",
        ),
        (lambda: SimplePyramidConfig(TINY, norm=NormConfig("group_norm", groups=3)), "channels 256 must be a multiple"),
    ],
    ids=["heads", "blocks", "size", "features", "norm"],
)
def test_what_cannot_be_built_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_layers_are_numbered_from_the_patches_on():
    for config in (SimplePyramidConfig(TINY), FPNConfig(TINY)):
        assert config.layers == 3
        below = [("patches", "kernel"), ("positions",), ("block1", "mlp"), ("block2", "attention", "norm", "scale")]
        assert [config.layer_of(("bottom_up", *path)) for path in below] == [0, 0, 1, 2]
        assert config.layer_of(("p2", "lateral", "conv", "kernel")) == 3


def test_the_published_model_has_its_parts():
    model = architectures.vitdet(ViTConfig())
    assert (model.rpn.num_convs, model.box_head.num_convs, model.box_head.num_fcs) == (2, 4, 1)
    assert (model.channel_order, model.backbone.size_divisor) == ("rgb", 32)
    for norm in (model.backbone.norm, model.box_head.norm, model.mask_head.norm):
        assert norm == NormConfig(kind="layer_norm", epsilon=1e-6)


@pytest.mark.slow
def test_it_learns_with_blocks_left_out_and_computed_again():
    config = tiny_experiment(
        Path("unused"),
        model=replace(FAMILY["vitdet"], remat=("backbone",), dtype="bfloat16"),
        batch_size=4,
        steps=30,
        optimizer=AdamWConfig(weight_decay=0.1, layer_decay=0.7),
    )
    batch = tiny_batch(4)
    _, history = take_steps(config, 1, lambda _: batch, steps=30)
    losses = [measures["loss"] for measures in history]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
