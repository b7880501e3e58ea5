"""ConvNeXts, Swins and VGGs under the names of those who publish their weights: the features of their networks."""

import functools
from dataclasses import dataclass, replace
from types import ModuleType

import jax
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    BackboneConfig,
    ConvNeXtConfig,
    Feature,
    FPNConfig,
    MaskRCNNConfig,
    SwinConfig,
    VGGConfig,
    abstract,
    architectures,
    networks,
)
from mask_rcnn_jax.pretrained import load_backbone, load_weights
from tests.pretrained.naming import flat, random_variables

DEPTHS, CHANNELS, HEADS = (1, 1, 2, 1), (8, 16, 32, 64), (1, 2, 2, 4)
CONVNEXT = ConvNeXtConfig(depths=DEPTHS, channels=CHANNELS, layer_scale=0.5)
SWIN = SwinConfig(depths=DEPTHS, channels=8, heads=HEADS, window=2)


def detector(backbone: BackboneConfig) -> MaskRCNNConfig:
    config = MaskRCNNConfig(
        num_classes=2, backbone=FPNConfig(backbone, channels=8), mask_head=None, channel_order="rgb"
    )
    return replace(config, box_head=replace(config.box_head, fc_channels=8))


def swin_of_torchvision():
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 8, list(DEPTHS), list(HEADS), [2, 2], stochastic_depth_prob=0.0, num_classes=3)


def convnext_of_torchvision():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = zip(CHANNELS, (*CHANNELS[1:], None), DEPTHS, strict=True)
    return ConvNeXt([CNBlockConfig(*of_stage) for of_stage in settings], layer_scale=0.5, num_classes=3)


def swin_of_timm():
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=64, window_size=2, embed_dim=8, depths=DEPTHS, num_heads=HEADS, num_classes=3, drop_path_rate=0.0
    )


def convnext_of_timm():
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=DEPTHS, dims=CHANNELS, ls_init_value=0.5, num_classes=3)


def with_random_weights(model):
    """The model, and its tensors by name: weights, biases and norms in which no two values are alike."""
    import torch

    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    return model.eval(), {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def features_of(model, image):
    """What a network's four stages make of an image, [B, H, W, C] each."""
    import torch

    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if hasattr(model, "forward_intermediates"):
            stages = model.forward_intermediates(x, norm=False, intermediates_only=True)
            return [stage.numpy().transpose(0, 2, 3, 1) for stage in stages]
        stages = [x := layer(x) for layer in model.features][1::2]
    channels_last = "Swin" in type(model).__name__
    return [stage.numpy() if channels_last else stage.numpy().transpose(0, 2, 3, 1) for stage in stages]


@functools.partial(jax.jit, static_argnums=0)
def our_features(config: MaskRCNNConfig, variables, image):
    bottom_up = networks(config, variables).backbone.bottom_up
    x = bottom_up.stem(image)
    return [x := getattr(bottom_up, name)(x, None) for name in bottom_up.stages]


@pytest.mark.parametrize(
    ("build", "backbone"),
    [
        (convnext_of_torchvision, CONVNEXT),
        (convnext_of_timm, CONVNEXT),
        (swin_of_torchvision, SWIN),
        (swin_of_timm, SWIN),
    ],
    ids=["ConvNeXt of torchvision", "ConvNeXt of timm", "Swin of torchvision", "Swin of timm"],
)
def test_features_are_those_of_the_publishers_network(torchvision: ModuleType, build, backbone):
    if "timm" in build.__name__:
        pytest.importorskip("timm")
    model, tensors = with_random_weights(build())
    config, image = detector(backbone), np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    before = random_variables(config)
    variables, report = load_backbone(tensors, config, before)
    classifier = [name for name in tensors if name.startswith(("classifier.", "head.", "norm."))]
    indices = [name for name in tensors if name.endswith("_index")]
    assert (report.loaded, report.missing, report.unused) == (
        len(tensors) - len(classifier) - len(indices),
        (),
        (),
    )
    for path, leaf in flat(variables).items():  # the norms of features and all else stay as they were
        if not path.startswith(("backbone/bottom_up/st",)):
            np.testing.assert_array_equal(leaf, flat(before)[path], path)
    for ours, theirs in zip(our_features(config, variables, image), features_of(model, image), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * abs(theirs).max())


def test_what_leads_to_a_stage_is_in_the_stage_before_in_its_authors_files(torchvision: ModuleType):
    """timm renames what it reads from them; both name the blocks alike."""
    config = detector(SWIN)
    _, tensors = with_random_weights(swin_of_torchvision())
    before = random_variables(config)
    expected, _ = load_backbone(tensors, config, before)
    for first in (0, 1):
        renamed = {}
        for name, tensor in tensors.items():
            match name.split("."):
                case ("features", "0", layer, leaf):
                    name = f"patch_embed.{ {'0': 'proj', '2': 'norm'}[layer] }.{leaf}"
                case ("features", number, layer, leaf) if int(number) % 2 == 0:
                    name = f"layers.{int(number) // 2 - 1 + first}.downsample.{layer}.{leaf}"
                case ("features", number, block, *rest):
                    layer = ".".join(rest).replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
                    name = f"layers.{int(number) // 2}.blocks.{block}.{layer}"
            renamed[name] = tensor
        found, _ = load_backbone(renamed | {"layers.0.blocks.1.attn_mask": np.zeros((4, 4, 4))}, config, before)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_vgg_of_timm_has_convolutions_for_the_box_heads_layers(torchvision: ModuleType):
    pytest.importorskip("timm")
    import torch
    from timm.models.vgg import VGG, ConvMlp

    layers = [4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    model = VGG(layers, num_classes=3, mlp_ratio=0.01)
    model.pre_logits = ConvMlp(32, 256)
    model, tensors = with_random_weights(model)
    config = replace(architectures.vgg(VGGConfig(depth=11, width=4), 2), channel_order="rgb")
    variables, report = load_backbone(tensors, config, random_variables(config))
    assert (report.loaded, report.missing, report.unused) == (len(tensors) - 2, (), ())
    found = flat(variables)
    np.testing.assert_array_equal(
        found["backbone/conv5/conv2/conv/kernel"], tensors["features.18.weight"].transpose(2, 3, 1, 0)
    )
    pooled = np.random.default_rng(0).normal(size=(2, 7, 7, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model.pre_logits(torch.from_numpy(pooled.transpose(0, 3, 1, 2))).numpy()[:, :, 0, 0]
    x = pooled.reshape(2, -1)
    for layer in ("fc1", "fc2"):
        x = np.maximum(x @ found[f"box_head/{layer}/kernel"] + found[f"box_head/{layer}/bias"], 0)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_resnets_of_timm_have_torchvisions_names(torchvision: ModuleType):
    timm = pytest.importorskip("timm")
    import torch

    with torch.device("meta"):
        theirs, ours = timm.create_model("resnet50"), torchvision.models.resnet50()
    assert theirs.state_dict().keys() == ours.state_dict().keys()


# --- What does not fit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnConfig(BackboneConfig):
    @property
    def features(self) -> dict[str, Feature]:
        return {name: Feature(8, stride) for name, stride in {"a": 4, "b": 8, "c": 16, "d": 32}.items()}

    def build(self, rngs: nnx.Rngs):
        raise NotImplementedError


def refusal(tmp_path, tensors: dict[str, np.ndarray], backbone: BackboneConfig) -> str:
    np.savez(tmp_path / "a.npz", **tensors)
    config = detector(backbone)
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "a.npz", config, abstract(config), ["this", "that"])
    assert str(error.value).startswith(f"{tmp_path / 'a.npz'}: ")
    return str(error.value).partition("a.npz: ")[2]


@pytest.mark.parametrize(
    ("sign", "theirs"),
    [
        ("layer1.0.conv1.weight", "ResNet"),
        ("features.0.weight", "VGG"),
        ("features.1.0.layer_scale", "ConvNeXt"),
        ("stages.0.blocks.0.gamma", "ConvNeXt"),
        ("blocks.0.norm1.weight", "ViT"),
    ],
)
def test_another_backbone_is_told_by_its_names(tmp_path, sign, theirs):
    message = refusal(tmp_path, {sign: np.ones(2)}, SWIN)
    assert message == (
        f"its backbone is a {theirs}, and model.backbone.bottom_up is a Swin Transformer; give weights of a Swin"
        " Transformer, or change the model"
    )
    other = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert "is a Swin Transformer, and model.backbone.bottom_up is a ConvNeXt;" in refusal(
        tmp_path, {other: np.ones(2)}, CONVNEXT
    )


def test_another_size_is_told_by_the_shapes(torchvision: ModuleType, tmp_path):
    _, tensors = with_random_weights(swin_of_torchvision())
    message = refusal(tmp_path, tensors, replace(SWIN, depths=(1, 1, 3, 1)))
    assert message.startswith(
        "its backbone is a Swin of 1+1+2+1 blocks and 8 channels with windows of 2, and model.backbone.bottom_up is a"
        " Swin of 1+1+3+1"
    )
    assert "blocks and 8 channels with windows of 2, and model.backbone.bottom_up is a Swin-T;" in refusal(
        tmp_path, tensors, SwinConfig()
    )
    message = refusal(tmp_path, tensors, replace(SWIN, window=3))
    assert "2, and model.backbone.bottom_up is a Swin of 1+1+2+1 blocks and 8 channels with windows of 3;" in message
    message = refusal(tmp_path, tensors, replace(SWIN, heads=(2, 2, 2, 4)))
    assert "relative_position_bias_table, as backbone/bottom_up/stage1/block1/attention/positions, is (9, 1)" in message
    assert "should be (9, 2)" in message


def test_stages_that_the_model_has_not_are_left_out(torchvision: ModuleType):
    whole = detector(CONVNEXT)
    config = replace(
        whole,
        backbone=FPNConfig(replace(CONVNEXT, out_features=("stage1", "stage2")), channels=8),
        rpn=replace(whole.rpn, features=("p2", "p3", "p4"), sizes=((32.0,),) * 3),
        box_head=replace(whole.box_head, pooler=replace(whole.box_head.pooler, features=("p2", "p3"))),
    )
    _, tensors = with_random_weights(convnext_of_torchvision())
    _, report = load_backbone(tensors, config, random_variables(config))
    assert report.missing == ()
    assert {name.split(".")[1] for name in report.unused} == {"4", "5", "6", "7"}


def test_weights_of_others_are_known_for_some_backbones(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(
        UserError, match=r"known for ResNet, VGG, ConvNeXt, Swin and ViT, and .*\.bottom_up is a OwnConfig;"
    ):
        load_weights(tmp_path / "a.npz", detector(OwnConfig()), abstract(detector(CONVNEXT)), ["this", "that"])
