"""Swin beside torchvision's, of which it has the weights: features, gradients, and its place under a pyramid."""

from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import FPNConfig, SwinConfig
from mask_rcnn_jax.models.backbones.swin import STAGES, Attention, Windows

CONFIG = SwinConfig(depths=(1, 2, 1, 1), channels=4, heads=(1, 2, 2, 4), window=3, feature_norms=False, drop_path=0.0)


@pytest.fixture(scope="module")
def reference(torchvision: ModuleType):
    """torchvision's features of the same depths and channels, with random weights and biases, in float64."""
    import torch
    from torchvision.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    heads, depths, window = list(CONFIG.heads), list(CONFIG.depths), [CONFIG.window] * 2
    model = SwinTransformer([4, 4], CONFIG.channels, depths, heads, window, stochastic_depth_prob=0.0, num_classes=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.features.double()


def name_in_torchvision(path: tuple[str, ...]) -> str:
    """The name of the tensor that belongs to a parameter of ours."""
    layers = {"norm": "norm1", "qkv": "attn.qkv", "out": "attn.proj"}
    perceptron = {"norm": "norm2", "expand": "mlp.0", "contract": "mlp.3"}
    leaf = "bias" if path[-1] == "bias" else "weight"
    if path[0] == "stem":
        return f"0.{ {'conv': 0, 'norm': 2}[path[1]] }.{leaf}"
    stage, block = 2 * int(path[0].removeprefix("stage")) - 1, path[1].removeprefix("block")
    match path[1:]:
        case ("merge", layer, _):
            return f"{stage - 1}.{layer}.{leaf}"
        case (_, "attention", "positions"):
            return f"{stage}.{int(block) - 1}.attn.relative_position_bias_table"
        case (_, "attention", layer, _):
            return f"{stage}.{int(block) - 1}.{layers[layer]}.{leaf}"
        case (_, "mlp", layer, _):
            return f"{stage}.{int(block) - 1}.{perceptron[layer]}.{leaf}"
    raise KeyError(path)


def in_our_layout(value: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value if path[-1] == "positions" else value.T


def with_weights_of(reference) -> nnx.Module:
    """Our network with all of the reference's tensors."""
    network = CONFIG.build(nnx.Rngs(0))
    theirs = {name: x.detach().numpy() for name, x in reference.state_dict().items() if "_index" not in name}
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        value = in_our_layout(theirs.pop(name_in_torchvision(path)), path)
        assert variable.shape == value.shape, path
        variable.set_value(jnp.asarray(value))
    assert not theirs
    return network


def in_float64(network: nnx.Module) -> nnx.Module:
    network.set_attributes(dtype=jnp.float64, raise_if_not_found=False)
    return network


# Maps of 12 x 9 tokens to 2 x 2: of whole windows and padded, in stage2 shifted both ways; of 4 x 11 to 1 x 1: odd ones
# that are padded before they are merged, in stage2 one window high, which is not shifted up.
@pytest.mark.parametrize("size", [(48, 36), (16, 44)])
def test_features_are_torchvisions(reference, size):
    import torch

    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    theirs = [torch.from_numpy(images.transpose(0, 3, 1, 2))]
    for layer in reference:
        theirs.append(layer(theirs[-1]))
    with jax.enable_x64(True):
        network = in_float64(with_weights_of(reference))
        features = nnx.jit(lambda network, images: network(images))(network, jnp.asarray(images))
    for stage, name in enumerate(STAGES):
        expected = theirs[2 * stage + 2].detach().numpy()
        np.testing.assert_allclose(features[name], expected, rtol=1e-9, atol=1e-9 * abs(expected).max())


@pytest.mark.parametrize("size", [(9, 7), (6, 13)])
def test_gradients_are_torchvisions(reference, size):
    """Of tokens that are merged, padded, shifted (both ways, or along a row alone) and told apart; all parameters."""
    import torch

    x = np.random.default_rng(0).normal(size=(2, *size, CONFIG.channels))
    inputs, merge, shifted = torch.from_numpy(x).requires_grad_(), reference[2], reference[3][1]
    reference.zero_grad()
    shifted(merge(inputs)).square().sum().backward()
    with jax.enable_x64(True):
        stage = in_float64(with_weights_of(reference)).stage2

        @nnx.jit
        def run(layers, x):
            return nnx.grad(lambda layers, x: jnp.sum(jnp.square(layers[1](layers[0](x), None))), argnums=(0, 1))(
                layers, x
            )

        gradients, of_inputs = run(nnx.List([stage.merge, stage.block2]), jnp.asarray(x))
    pairs = {"inputs": (of_inputs, inputs.grad.numpy())}
    for path, gradient in nnx.to_flat_state(gradients):
        path = ("stage2", ("merge", "block2")[path[0]], *path[1:])
        tensor = reference.get_parameter(name_in_torchvision(path))
        pairs["/".join(path)] = gradient[...], in_our_layout(tensor.grad.numpy(), path)
    assert len(pairs) == 1 + sum(1 for layer in (merge, shifted) for _ in layer.parameters())
    for name, (ours, expected) in pairs.items():
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9 * abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (SwinConfig(), 28_288_354),
        pytest.param(SwinConfig(depths=(2, 2, 18, 2)), 49_606_258, marks=pytest.mark.slow),
        (SwinConfig(depths=(2, 2, 18, 2), channels=128, heads=(4, 8, 16, 32)), 87_768_224),
    ],
    ids=["T", "S", "B"],
)
def test_parameters_are_those_that_torchvision_documents(config, parameters):
    """Of classifiers of 1000 classes; ours have four norms of features for one, and no last layer."""
    network = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    ours = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    channels = [feature.channels for feature in config.features.values()]
    assert ours == parameters - (channels[-1] + 1) * 1000 + 2 * sum(channels[:-1])


def test_a_side_of_one_window_is_shifted_where_it_is_asked_for():
    """MMDetection's windows are always shifted: then tokens of the same window attend to their own end alone."""
    still, shifted = Windows(7, 3, shifts_single=False), Windows(7, 3, shifts_single=True)
    assert (still.shifts(7, 14), shifted.shifts(7, 14)) == ((0, 3), (3, 3))
    assert not still.apart(7, 7).any()
    (apart,) = shifted.apart(7, 7)
    y, x = np.divmod(np.arange(49), 7)
    ends = 2 * (y >= 4) + (x >= 4)
    np.testing.assert_array_equal(apart, ends[:, None] != ends[None, :])


def test_shifted_attention_in_a_single_window_is_that_of_loops():
    """As MMDetection has it: each token attends to those of its own end of the map, at their places in the window."""
    attention = Attention(4, 2, Windows(4, 2, shifts_single=True), rngs=nnx.Rngs(0))
    for _, variable in nnx.to_flat_state(nnx.state(attention)):
        variable.set_value(jax.random.normal(jax.random.key(variable.size), variable.shape))
    x = np.random.default_rng(0).normal(size=(4, 4, 4))
    scale, shift = (np.asarray(v[...], np.float64) for v in (attention.norm.scale, attention.norm.bias))
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + shift
    qkv = normed @ np.asarray(attention.qkv.kernel[...]) + np.asarray(attention.qkv.bias[...])
    q, k, v = qkv.reshape(4, 4, 3, 2, 2).transpose(2, 0, 1, 3, 4)  # [row, column, head, channel] each
    table = np.asarray(attention.positions[...]).reshape(7, 7, 2)
    attended = np.zeros((4, 4, 2, 2))
    for row, column, head in np.ndindex(4, 4, 2):
        # A shift by two carries each half around its edge as a whole, so that distances within it stay.
        rows, columns = ([2 * (place // 2), 2 * (place // 2) + 1] for place in (row, column))
        others = [(r, c) for r in rows for c in columns]
        logits = [
            q[row, column, head] @ k[r, c, head] / np.sqrt(2) + table[row - r + 3, column - c + 3, head]
            for r, c in others
        ]
        weights = np.exp(logits) / np.exp(logits).sum()
        attended[row, column, head] = sum(w * v[r, c, head] for w, (r, c) in zip(weights, others, strict=True))
    expected = attended.reshape(4, 4, 4) @ np.asarray(attention.out.kernel[...]) + np.asarray(attention.out.bias[...])
    ours = attention(jnp.asarray(x[None], jnp.float32))[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_it_takes_any_size_and_stands_under_a_pyramid_and_may_be_frozen():
    small = replace(CONFIG, depths=(1, 1, 1, 1), feature_norms=True)
    network = nnx.eval_shape(lambda: small.build(nnx.Rngs(0)))
    features = nnx.eval_shape(lambda network: network(jnp.zeros((1, 35, 50, 3))), network)
    assert [x.shape[1:] for x in features.values()] == [(9, 13, 4), (5, 7, 8), (3, 4, 16), (2, 2, 32)]
    part = replace(small, out_features=("stage2", "stage3"), freeze_at=2)
    pyramid = FPNConfig(part, channels=8)
    assert pyramid.out_strides == {"p3": 8, "p4": 16, "p5": 32}
    network = nnx.eval_shape(lambda: pyramid.build(nnx.Rngs(0)))
    trained = nnx.to_pure_dict(nnx.state(network, nnx.Param))["bottom_up"]
    assert set(trained) == {"stage2", "stage3", "norm"}
    assert set(trained["norm"]) == {"stage2", "stage3"}
    with pytest.raises(ValueError, match="the 8 channels of stage2 must be a multiple of its 3 heads"):
        replace(small, heads=(1, 3, 2, 4))


def test_branches_are_left_out_of_images_at_random_in_training():
    """Of the last block either branch, both or none: what is there is scaled up."""
    config = replace(CONFIG, depths=(1, 1, 1, 1), out_features=("stage1", "stage2"), drop_path=0.9)
    assert not CONFIG.draws
    assert config.draws
    assert FPNConfig(config, channels=8).draws
    network, keys = config.build(nnx.Rngs(0)), jax.random.split(jax.random.key(0), 64)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)).repeat(64, axis=0), jnp.float32)
    apply = nnx.jit(lambda network, keys: config.apply(network, images, keys))
    plain, drawn = apply(network, None), apply(network, keys)
    np.testing.assert_allclose(drawn["stage1"], plain["stage1"], rtol=1e-5, atol=1e-6)  # the first is always there
    merged = network.stage2.merge(plain["stage1"])
    block, scale = network.stage2.block1, 1 / 0.7
    attended = merged + scale * block.attention(merged)
    outcomes = [merged, merged + scale * block.mlp(merged), attended, attended + scale * block.mlp(attended)]
    of_image = [np.isclose(drawn["stage2"], x, rtol=1e-4, atol=1e-4).all(axis=(1, 2, 3)) for x in outcomes]
    np.testing.assert_array_equal(np.sum(of_image, axis=0), 1)
    # Of 64 with probabilities .09, .21, .21 and .49: outside of these bounds once in ten thousand keys.
    for found, (low, high) in zip(of_image, [(0, 16), (3, 27), (3, 27), (16, 47)], strict=True):
        assert low <= found.sum() <= high
