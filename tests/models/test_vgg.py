"""VGG beside torchvision's, of which it has the weights: features, gradients, the box head's layers, and its places."""

from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    BoxHeadConfig,
    FPNConfig,
    MaskRCNNConfig,
    NormConfig,
    ResNetConfig,
    Variables,
    VGGConfig,
    abstract,
    architectures,
    init,
    networks,
)
from mask_rcnn_jax.models.backbones.vgg import STAGES
from mask_rcnn_jax.pretrained import load_weights
from mask_rcnn_jax.pretrained.names.table import translate
from mask_rcnn_jax.pretrained.names.vgg import VGGNames
from tests.pretrained.naming import as_detectron2, flat, random_variables

CONVENTIONS = {"channel_order": "rgb", "pixel_std": (58.395, 57.12, 57.375)}


def reference(depth: int, width: int, batch_norm: bool = False):
    """torchvision's network with fewer channels, and random weights, biases and statistics."""
    import torch
    from torchvision.models import vgg as theirs

    torch.manual_seed(depth)
    letter = {11: "A", 13: "B", 16: "D", 19: "E"}[depth]
    layers = [layer if layer == "M" else layer * width // 64 for layer in theirs.cfgs[letter]]
    model = torch.nn.Sequential()
    model.features = theirs.make_layers(layers, batch_norm)
    fcs = torch.nn.Linear(8 * width * 49, 64 * width), torch.nn.Linear(64 * width, 64 * width)
    last = torch.nn.Linear(64 * width, 10)
    model.classifier = torch.nn.Sequential(
        fcs[0], torch.nn.ReLU(), torch.nn.Dropout(), fcs[1], torch.nn.ReLU(), torch.nn.Dropout(), last
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if getattr(module, "bias", None) is not None:
            torch.nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def tensors_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def stages_of(features, x) -> dict:
    """What each stage makes before it is pooled."""
    made = {}
    for layer in features:
        if type(layer).__name__ == "MaxPool2d":
            made[STAGES[len(made)]] = x
        x = layer(x)
    return made


def detector(backbone: VGGConfig, **changes) -> MaskRCNNConfig:
    return replace(architectures.vgg(backbone, 2), **CONVENTIONS, **changes)


def loaded(tmp_path, model, config: MaskRCNNConfig) -> tuple[Variables, list[str]]:
    np.savez(tmp_path / "vgg.npz", **tensors_of(model))
    return load_weights(tmp_path / "vgg.npz", config, init(config, jax.random.key(0)), ["this", "that"])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_features_and_the_box_heads_layers_are_torchvisions(torchvision: ModuleType, tmp_path, batch_norm):
    import torch

    model = reference(16, 4, batch_norm)
    norm = NormConfig(kind="frozen_batch_norm" if batch_norm else "none")
    config = detector(VGGConfig(width=4, norm=norm))
    variables, lines = loaded(tmp_path, model, config)
    assert lines == [f"{65 + 4 if batch_norm else 26 + 4} tensors loaded"]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = stages_of(model.features, image)["conv5"]
        pooled = torch.nn.functional.adaptive_avg_pool2d(expected, 7)
        of_rois = model.classifier[:5](pooled.flatten(1)).numpy()
    ours = networks(config, variables)
    found = ours.backbone(jnp.asarray(image.numpy().transpose(0, 2, 3, 1)))["conv5"]
    expected = expected.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
    flattened = pooled.numpy().transpose(0, 2, 3, 1).reshape(1, -1)
    x = jax.nn.relu(ours.box_head.fc2(jax.nn.relu(ours.box_head.fc1(flattened))))
    np.testing.assert_allclose(x, of_rois, atol=1e-5 * abs(of_rois).max())


@pytest.mark.parametrize(
    ("depth", "dtype", "bound"),
    [
        (11, np.float32, 1e-4),
        pytest.param(16, np.float32, 1e-4, marks=pytest.mark.slow),
        pytest.param(16, np.float64, 1e-9, marks=pytest.mark.slow),
    ],
)
def test_features_and_gradients_are_torchvisions(torchvision: ModuleType, depth, dtype, bound):
    """Of images with an area of one colour, where maxima are equal; VGG-11 in float64 is in `tests/conformance`."""
    import torch

    model = reference(depth, 4).to(torch.float64 if dtype == np.float64 else torch.float32)
    images = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(dtype)
    images[:, :, 20:] = 0.5
    theirs = stages_of(model.features, torch.from_numpy(images.transpose(0, 3, 1, 2)))
    theirs["conv5"].square().sum().backward()
    config = VGGConfig(depth=depth, width=4, out_features=STAGES, freeze_at=0)
    names = VGGNames().table(tensors_of(model), VGGConfig())
    tensors, unknown = translate(tensors_of(model), names)
    assert not unknown
    with jax.enable_x64(dtype == np.float64):
        network = config.build(nnx.Rngs(0))
        for path, variable in nnx.to_flat_state(nnx.state(network)):
            variable.set_value(jnp.asarray(tensors["/".join(path)].turned(7)))

        @nnx.jit
        def run(network, images):
            def loss(network):
                features = network(images)
                return jnp.sum(jnp.square(features["conv5"])), features

            return nnx.grad(loss, has_aux=True)(network)

        gradients, features = run(network, jnp.asarray(images))
    for name, stage in theirs.items():
        expected = stage.detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(features[name], expected, rtol=bound, atol=bound * abs(expected).max())
    expected, _ = translate(
        {name: parameter.grad.numpy() for name, parameter in model.features.named_parameters("features")}, names
    )
    found = flat(Variables(nnx.to_pure_dict(gradients), {}))
    assert found.keys() == expected.keys()
    for path, gradient in found.items():
        of_theirs = expected[path].turned(7)
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, of_theirs, rtol=bound, atol=bound * abs(of_theirs).max(), err_msg=path)


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    [
        (VGGConfig(depth=11), 132_863_336),
        (VGGConfig(depth=13), 133_047_848),
        (VGGConfig(), 138_357_544),
        (VGGConfig(depth=19), 143_667_240),
    ],
    ids=["11", "13", "16", "19"],
)
def test_parameters_are_those_that_torchvision_documents(backbone, parameters):
    """Of classifiers of 1000 classes, but for their last layer."""
    variables = abstract(detector(backbone))
    head = variables.params["box_head"]
    parts = variables.params["backbone"], variables.buffers["backbone"], head["fc1"], head["fc2"]
    ours = sum(x.size for x in jax.tree.leaves(parts))
    assert ours == parameters - (4096 + 1) * 1000


def test_a_classifier_that_fits_no_box_head_is_left_out(torchvision: ModuleType, tmp_path):
    model = reference(16, 4)
    pyramid = FPNConfig(VGGConfig(width=4, out_features=("conv3", "conv4")), channels=8)
    pooler = {"features": ("p2", "p3")}
    plain = MaskRCNNConfig()
    config = MaskRCNNConfig(
        num_classes=2,
        backbone=pyramid,
        rpn=replace(plain.rpn, features=("p2", "p3", "p4"), sizes=((32.0,),) * 3),
        box_head=BoxHeadConfig(pooler=replace(plain.box_head.pooler, **pooler), fc_channels=8),
        mask_head=None,
        **CONVENTIONS,
    )
    variables, (first, missing, unused) = loaded(tmp_path, model, config)
    assert first == "20 tensors loaded"
    assert missing == "  not in it, initialised at random: box_head/fc1, box_head/fc2"
    assert "features.24.weight" in unused
    kernel = tensors_of(model)["features.21.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(flat(variables)["backbone/bottom_up/conv4/conv3/conv/kernel"], kernel)


@pytest.mark.parametrize("depth", [11, 19])
def test_weights_of_another_depth_are_refused(torchvision: ModuleType, tmp_path, depth):
    with pytest.raises(UserError, match=f"its backbone is a VGG-{depth}, and model.backbone is a VGG-16; give"):
        loaded(tmp_path, reference(depth, 4), detector(VGGConfig(width=4)))


def test_weights_with_norms_are_told_from_those_without(torchvision: ModuleType, tmp_path):
    with pytest.raises(UserError, match=r"is a VGG-16 with batch norms, and model\.backbone is a VGG-16; give weights"):
        loaded(tmp_path, reference(16, 4, batch_norm=True), detector(VGGConfig(width=4)))


def test_weights_of_another_network_are_refused(tmp_path):
    config = detector(VGGConfig(width=4))
    np.savez(tmp_path / "resnet.npz", **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(UserError, match=r"resnet\.npz: .* no VGG that is known: conv1\.weight"):
        load_weights(tmp_path / "resnet.npz", config, abstract(config), ["this", "that"])


def test_a_detector_on_another_backbone_is_refused(tmp_path):
    config = detector(VGGConfig(width=4))
    other = MaskRCNNConfig(num_classes=2, backbone=FPNConfig(ResNetConfig(width=2, stem_width=2), channels=2))
    np.savez(tmp_path / "detector.npz", **as_detectron2(random_variables(other)))
    with pytest.raises(UserError, match=r"detector\.npz: its backbone is a ResNet-50, and model\.backbone is a VGG-16"):
        load_weights(tmp_path / "detector.npz", config, abstract(config), ["this", "that"])


def test_it_stands_under_a_pyramid_and_its_first_stages_are_frozen():
    pyramid = FPNConfig(VGGConfig(depth=11, width=4, out_features=("conv3", "conv4", "conv5")), channels=8)
    assert pyramid.out_strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert pyramid.size_divisor == 16
    network = nnx.eval_shape(lambda: pyramid.build(nnx.Rngs(0)))
    features = nnx.eval_shape(lambda network: network(jnp.zeros((1, 32, 48, 3))), network)
    assert {name: x.shape for name, x in features.items()} == {
        "p2": (1, 8, 12, 8),
        "p3": (1, 4, 6, 8),
        "p4": (1, 2, 3, 8),
        "p5": (1, 1, 2, 8),
    }
    trained = nnx.to_pure_dict(nnx.state(network, nnx.Param))["bottom_up"]
    assert set(trained) == {"conv3", "conv4", "conv5"}
