"""ImageNet backbones under the names of their publishers."""

import re
from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    FPNConfig,
    MaskRCNNConfig,
    NormConfig,
    ResNetConfig,
    Variables,
    architectures,
    init,
    networks,
)
from mask_rcnn_jax.pretrained import load_backbone, load_weights, read_tensors
from tests.pretrained.naming import as_detectron2, flat, random_variables

RESNET = ResNetConfig(width=8)
BOXES = MaskRCNNConfig(num_classes=2, backbone=FPNConfig(RESNET, channels=8), mask_head=None)
BOXES = replace(BOXES, box_head=replace(BOXES.box_head, fc_channels=8))
C4 = replace(architectures.c4(RESNET, 2), mask_head=None)


@pytest.fixture(scope="module")
def start() -> Variables:
    return init(BOXES, jax.random.key(0))


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """A ResNet-50 with the names of Detectron2's converted backbones."""
    prefix = "backbone.bottom_up."
    tensors = as_detectron2(random_variables(BOXES, seed=1))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def as_torchvision(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def rename(name: str) -> str:
        name = name.replace("stem.conv1.norm", "bn1").replace("stem.", "")
        name = re.sub(r"res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
        return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")

    classifier = {"fc.weight": np.ones((1000, 256)), "fc.bias": np.ones(1000), "bn1.num_batches_tracked": np.array(7)}
    return {rename(name): tensor for name, tensor in weights.items()} | classifier


def as_caffe2(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The MSRA files: norms have a scale and a bias alone."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    renamed = {"conv1_b": np.zeros(8), "fc1000_w": np.ones((1000, 256)), "fc1000_b": np.ones(1000)}
    for name, tensor in weights.items():
        if "running" in name:
            continue
        name = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1")
        name = re.sub(r"(res\d)\.(\d+)\.(\w+)", lambda m: f"{m[1]}_{m[2]}_{branches[m[3]]}", name)
        name = name.replace(".norm", "_bn").replace("bn.weight", "bn_s").replace("bn.bias", "bn_b")
        renamed[name.replace(".weight", "_w")] = tensor
    return renamed


def test_the_same_resnet_under_three_names(start, weights):
    expected, report = load_backbone(weights, BOXES, start)
    assert (report.loaded, report.missing) == (265, ())
    changed = [path for path, leaf in flat(expected).items() if not np.array_equal(leaf, flat(start)[path])]
    assert len(changed) == 265
    assert all(path.startswith("backbone/bottom_up/") for path in changed)
    assert "layer3.5.bn2.running_var" in as_torchvision(weights)
    jax.tree.map(np.testing.assert_array_equal, load_backbone(as_torchvision(weights), BOXES, start)[0], expected)

    assert {"res_conv1_bn_s", "res4_5_branch2c_w", "res2_0_branch1_bn_b"} <= as_caffe2(weights).keys()
    affine, report = load_backbone(as_caffe2(weights), BOXES, start)
    assert (report.loaded, report.missing) == (265, ())
    for path, leaf in flat(affine).items():
        if path.startswith("backbone/bottom_up/") and path.endswith(("/mean", "/var")):
            assert (leaf == path.endswith("/var")).all(), path
        else:
            np.testing.assert_array_equal(leaf, flat(expected)[path])


def test_statistics_of_caffe2_and_group_norm(start, weights):
    """ResNeXt's file has running statistics; the group norm one has scales and biases of another name."""
    with_statistics = as_caffe2(weights) | {"res_conv1_bn_rm": np.full(8, 2.0), "res_conv1_bn_riv": np.full(8, 3.0)}
    with pytest.raises(UserError, match="104 missing"):
        load_backbone(with_statistics, BOXES, start)
    norm = NormConfig(kind="group_norm", groups=4)
    config = replace(BOXES, backbone=FPNConfig(replace(RESNET, norm=norm), channels=8))
    tensors = {name.replace("_bn_", "_gn_").replace("res_conv1", "conv1"): x for name, x in as_caffe2(weights).items()}
    loaded, report = load_backbone(tensors, config, init(config, jax.random.key(0)))
    assert (report.loaded, report.missing) == (159, ())
    np.testing.assert_array_equal(flat(loaded)["backbone/bottom_up/stem/norm/scale"], tensors["conv1_gn_s"])


def test_c4_has_the_last_stage_beside_its_backbone(weights):
    loaded, report = load_backbone(as_torchvision(weights), C4, init(C4, jax.random.key(0)))
    assert (report.loaded, report.missing) == (265, ())
    kernel = as_torchvision(weights)["layer4.2.conv3.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(flat(loaded)["res5/block3/conv3/conv/kernel"], kernel)


def test_features_are_torchvisions(torchvision: ModuleType):
    """A whole ResNet-18 with random norms, also with its norms folded into the kernels."""
    import torch

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=0.1)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
        layers = (model.layer1, model.layer2, model.layer3, model.layer4)
        expected = [(x := layer(x)).numpy().transpose(0, 2, 3, 1) for layer in layers]
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = MaskRCNNConfig(num_classes=2, backbone=FPNConfig(ResNetConfig(depth=18), channels=8), mask_head=None)
    before = init(replace(config, box_head=replace(config.box_head, fc_channels=8)), jax.random.key(0))
    for variant in (tensors, folded(tensors)):
        variables, report = load_backbone(variant, config, before)
        assert report.missing == ()
        bottom_up = networks(
            replace(config, box_head=replace(config.box_head, fc_channels=8)), variables
        ).backbone.bottom_up
        features = bottom_up(jnp.asarray(image.numpy().transpose(0, 2, 3, 1)))
        for found, feature in zip(features.values(), expected, strict=True):
            np.testing.assert_allclose(found, feature, atol=1e-4 * abs(feature).max())


def folded(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kernels of a torchvision ResNet with batch norm multiplied in."""
    result = {}
    for name, kernel in tensors.items():
        if kernel.ndim == 4:
            conv = name.removesuffix(".weight")
            norm = conv.replace("downsample.0", "downsample.1").replace("conv", "bn")
            scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + 1e-5)
            result[name] = kernel * scale[:, None, None, None]
            result[f"{conv}.bias"] = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
    return result


def test_a_part_of_a_resnet_says_what_is_missing(shared):
    """The file holds a ResNet-18 with folded norms, without four kernels of its last stage."""
    config = MaskRCNNConfig(num_classes=2, backbone=FPNConfig(ResNetConfig(depth=18), channels=8), mask_head=None)
    config = replace(config, box_head=replace(config.box_head, fc_channels=8), channel_order="rgb")
    path = shared / "weights" / "resnet18_imagenet_partial.npz"
    _, lines = load_weights(path, config, init(config, jax.random.key(0)), ())
    _, report = load_backbone(read_tensors(path), config, init(config, jax.random.key(0)))
    assert all(re.fullmatch(r"backbone/bottom_up/res5/block\d/.*", missing) for missing in report.missing)
    assert len([missing for missing in report.missing if missing.endswith("kernel")]) == 4
    assert lines[0] == f"{report.loaded} tensors loaded"
    assert lines[1].startswith("  not in it, initialised at random: backbone/bottom_up/res5/")
    assert len(lines) == 2


def test_settings_that_contradict_the_weights_are_warned_of(tmp_path, start, weights):
    np.savez(tmp_path / "torchvision.npz", **as_torchvision(weights))
    np.savez(tmp_path / "msra.npz", **as_caffe2(weights))
    _, lines = load_weights(tmp_path / "torchvision.npz", BOXES, start, ())
    assert lines[1:] == [
        "  warning: the weights were made with model.channel_order=rgb, the model has bgr",
        "  warning: the weights were made with model.backbone.bottom_up.stride_in_1x1=false, the model has true",
    ]
    assert len(load_weights(tmp_path / "msra.npz", BOXES, start, ())[1]) == 1


def more(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The blocks that a ResNet-101 has and a ResNet-50 has not."""
    block = {name.removeprefix("layer3.5"): x for name, x in weights.items() if name.startswith("layer3.5.")}
    return {f"layer3.{number}{name}": x for number in range(5, 23) for name, x in block.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"conv1.0.weight": x["conv1.weight"]}, "deep stem"),
        (lambda x: {"features.weight": x["conv1.weight"]}, "names of no detector and no ResNet"),
        (
            lambda x: {"features.0.weight": x["conv1.weight"]},
            "^its backbone is a VGG, and model.backbone.bottom_up is a ResNet; give weights of a ResNet, or change",
        ),
        (
            lambda x: x | more(x),
            "^its backbone is a ResNet-101, and model.backbone.bottom_up is a ResNet-50; give weights of a ResNet-50",
        ),
        (lambda x: x | {"layer1.0.se.weight": np.ones(2)}, "1 without a place in the model: layer1.0.se.weight"),
        (lambda x: x | {"layer4.3.conv1.weight": np.ones((1, 1, 1, 1))}, "1 without a place .* layer4.3.conv1.weight"),
        (lambda x: x | {"conv1.weight": np.ones((8, 4, 7, 7))}, r"is \(7, 7, 4, 8\) and should be \(7, 7, 3, 8\)"),
        (lambda x: {k: v for k, v in x.items() if k != "bn1.running_mean"}, "1 missing: .*/stem/norm/mean"),
        (lambda x: {k: v for k, v in x.items() if "running" not in k}, "106 missing"),
    ],
)
def test_what_does_not_fit_is_named(start, weights, change, message):
    with pytest.raises(UserError, match=message):
        load_backbone(change(as_torchvision(weights)), BOXES, start)
