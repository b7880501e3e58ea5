"""ConvNeXt beside torchvision's, of which it has the weights: features, gradients, and its place under a pyramid."""

from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import ConvNeXtConfig, FPNConfig, MaskRCNNConfig
from mask_rcnn_jax.pretrained import contradictions, conventions

CONFIG = ConvNeXtConfig(depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), layer_scale=0.5, feature_norms=False)


@pytest.fixture(scope="module")
def reference(torchvision: ModuleType):
    """torchvision's features of the same depths and channels, with random weights and biases, in float64."""
    import torch
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    following = (*CONFIG.channels[1:], None)
    settings = [CNBlockConfig(*of_stage) for of_stage in zip(CONFIG.channels, following, CONFIG.depths, strict=True)]
    model = ConvNeXt(settings, stochastic_depth_prob=0.0, layer_scale=CONFIG.layer_scale, num_classes=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.features.double()


def name_in_torchvision(path: tuple[str, ...]) -> str:
    """The name of the tensor that belongs to a parameter of ours."""
    layers = {"conv": "0", "norm": "1", "depthwise": "block.0", "expand": "block.3", "contract": "block.5"}
    leaf = "bias" if path[-1] == "bias" else "weight"
    stage = 2 * int(path[0].removeprefix("stage")) - 1 if path[0] != "stem" else 0
    match path[1:]:
        case (layer, _):
            if path[0] == "stem":
                return f"0.{layers[layer]}.{leaf}"
            return f"{stage}.{number(layer)}.layer_scale"
        case ("downsample", layer, _):
            return f"{stage - 1}.{ {'norm': 0, 'conv': 1}[layer] }.{leaf}"
        case (block, "norm", _):
            return f"{stage}.{number(block)}.block.2.{leaf}"
        case (block, layer, _):
            return f"{stage}.{number(block)}.{layers[layer]}.{leaf}"
    raise KeyError(path)


def number(block: str) -> int:
    return int(block.removeprefix("block")) - 1


def with_weights_of(reference) -> nnx.Module:
    """Our network with all of the reference's tensors."""
    network = CONFIG.build(nnx.Rngs(0))
    theirs = {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        value = theirs.pop(name_in_torchvision(path))
        value = value.reshape(-1) if path[-1] == "scale" else value
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        assert variable.shape == value.shape, path
        variable.set_value(jnp.asarray(value))
    assert not theirs
    return network


def test_features_and_gradients_are_torchvisions(reference):
    import torch

    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3))
    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    theirs = [x]
    for layer in reference:
        theirs.append(layer(theirs[-1]))
    theirs[-1].square().sum().backward()
    with jax.enable_x64(True):
        network = with_weights_of(reference)
        network.set_attributes(dtype=jnp.float64, raise_if_not_found=False)

        @nnx.jit
        def run(network, images):
            def loss(network):
                features = network(images)
                return jnp.sum(jnp.square(features["stage4"])), features

            return nnx.grad(loss, has_aux=True)(network)

        gradients, features = run(network, jnp.asarray(images))
    for stage in range(4):
        expected = theirs[2 * stage + 2].detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(features[f"stage{stage + 1}"], expected, rtol=1e-9, atol=1e-9 * abs(expected).max())
    for ours, tensor in (
        (gradients["stem"]["conv"]["kernel"], reference[0][0].weight.grad.permute(2, 3, 1, 0)),
        (
            gradients["stage1"]["block1"]["depthwise"]["kernel"],
            reference[1][0].block[0].weight.grad.permute(2, 3, 1, 0),
        ),
        (gradients["stage3"]["block2"]["scale"], reference[5][1].layer_scale.grad.flatten()),
        (gradients["stage4"]["downsample"]["norm"]["bias"], reference[6][0].bias.grad),
    ):
        expected = tensor.numpy()
        np.testing.assert_allclose(ours[...], expected, rtol=1e-8, atol=1e-8 * abs(expected).max())


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
