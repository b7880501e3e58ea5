"""MMDetection's Mask R-CNNs with ConvNeXt and Swin: names written down a second time, and the order of tokens."""

import pickle
import re
from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import (
    BoxHeadConfig,
    ConvNeXtConfig,
    FPNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    SwinConfig,
    networks,
)
from mask_rcnn_jax.pretrained import (
    assumptions,
    check_backbone,
    convert,
    count_classes,
    describe,
    find_source,
    infer,
    published_classes,
    read_tensors,
)
from tests.pretrained.naming import flat, random_variables

CONVNEXT = ConvNeXtConfig(depths=(1, 1, 2, 1), channels=(8, 12, 16, 24))
SWIN = SwinConfig(depths=(1, 1, 2, 1), channels=4, heads=(1, 2, 2, 4), window=3, shifts_single_windows=True)
_LAYERS = (
    (r"backbone/bottom_up/stem/(conv|norm)", "backbone.{swin_stem}"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/attention/(norm)", "backbone.stages.{0-1}.blocks.{1-1}.norm1"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/attention/qkv", "backbone.stages.{0-1}.blocks.{1-1}.attn.w_msa.qkv"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/attention/out", "backbone.stages.{0-1}.blocks.{1-1}.attn.w_msa.proj"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/attention", "backbone.stages.{0-1}.blocks.{1-1}.attn.w_msa"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/mlp/norm", "backbone.stages.{0-1}.blocks.{1-1}.norm2"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/mlp/expand", "backbone.stages.{0-1}.blocks.{1-1}.ffn.layers.0.0"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/mlp/contract", "backbone.stages.{0-1}.blocks.{1-1}.ffn.layers.1"),
    (r"backbone/bottom_up/stage(\d)/merge/(\w+)", "backbone.stages.{0-2}.downsample.{1}"),
    (r"backbone/bottom_up/norm/stage(\d)", "backbone.norm{0-1}"),
    (r"backbone/bottom_up/norm_stage(\d)", "backbone.norm{0-1}"),
    (r"backbone/bottom_up/stage(\d)/downsample/norm", "backbone.downsample_layers.{0-1}.0"),
    (r"backbone/bottom_up/stage(\d)/downsample/conv", "backbone.downsample_layers.{0-1}.1"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/depthwise", "backbone.stages.{0-1}.{1-1}.depthwise_conv"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/norm", "backbone.stages.{0-1}.{1-1}.norm"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/expand", "backbone.stages.{0-1}.{1-1}.pointwise_conv1"),
    (r"backbone/bottom_up/stage(\d)/block(\d)/contract", "backbone.stages.{0-1}.{1-1}.pointwise_conv2"),
    (r"backbone/bottom_up/stage(\d)/block(\d)", "backbone.stages.{0-1}.{1-1}"),
    (r"backbone/lateral(\d)/conv", "neck.lateral_convs.{0-2}.conv"),
    (r"backbone/output(\d)/conv", "neck.fpn_convs.{0-2}.conv"),
    (r"rpn/conv1/conv", "rpn_head.rpn_conv"),
    (r"rpn/objectness/conv", "rpn_head.rpn_cls"),
    (r"rpn/deltas/conv", "rpn_head.rpn_reg"),
    (r"box_head/fc(\d)", "roi_head.bbox_head.shared_fcs.{0-1}"),
    (r"box_head/class_logits", "roi_head.bbox_head.fc_cls"),
    (r"box_head/box_deltas", "roi_head.bbox_head.fc_reg"),
    (r"mask_head/conv(\d)/conv", "roi_head.mask_head.convs.{0-1}.conv"),
    (r"mask_head/deconv", "roi_head.mask_head.upsample"),
    (r"mask_head/predictor", "roi_head.mask_head.conv_logits"),
)
_STEMS = {
    ConvNeXtConfig: {"conv": "downsample_layers.0.0", "norm": "downsample_layers.0.1"},
    SwinConfig: {"conv": "patch_embed.projection", "norm": "patch_embed.norm"},
}
_LAST = {"kernel": "weight", "scale": "weight", "bias": "bias", "positions": "relative_position_bias_table"}


def detector(backbone: ConvNeXtConfig | SwinConfig) -> MaskRCNNConfig:
    return MaskRCNNConfig(
        num_classes=5,
        backbone=FPNConfig(backbone, channels=8),
        box_head=BoxHeadConfig(fc_channels=12),
        mask_head=MaskHeadConfig(channels=8),
        pixel_std=(58.395, 57.12, 57.375),
        channel_order="rgb",
    )


def as_mmdetection(config: MaskRCNNConfig, variables) -> dict[str, np.ndarray]:
    """The state dict that MMDetection's model with these variables has."""
    stems = _STEMS[type(config.backbone.bottom_up)]
    return {_name(path, stems): _in_torch(path, leaf) for path, leaf in flat(variables).items()}


def _name(path: str, stems: dict[str, str]) -> str:
    layer, last = re.fullmatch(r"(.*)[/_](\w+)", path).groups()
    for pattern, name in _LAYERS:
        if match := re.fullmatch(pattern, layer):
            groups = match.groups()
            for i, group in enumerate(groups):
                name = name.replace(f"{{{i}}}", group).replace("{swin_stem}", stems.get(group, ""))
                for less in (1, 2) if group.isdigit() else ():
                    name = name.replace(f"{{{i}-{less}}}", str(int(group) - less))
            is_block = re.fullmatch(r"backbone/bottom_up/stage\d/block\d", layer)
            return f"{name}.{'gamma' if is_block else _LAST[last]}"
    raise AssertionError(f"no name for {path}")


def _in_torch(path: str, leaf: np.ndarray) -> np.ndarray:
    if "/merge/" in path:
        # As MMDetection converts the authors' weights: the second and third token change places, channels come first.
        tokens = leaf.T.reshape(*leaf.T.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
        return tokens.swapaxes(-1, -2).reshape(leaf.T.shape)
    if path.endswith("positions"):
        return leaf
    if path.endswith("deconv/kernel"):
        return leaf.transpose(2, 3, 0, 1)
    if path.endswith("predictor_kernel"):
        return leaf.T[:, :, None, None]
    if path == "box_head/fc1/kernel":
        grid = leaf.reshape(7, 7, -1, leaf.shape[1])
        return np.stack([grid[..., out].transpose(2, 0, 1).ravel() for out in range(leaf.shape[1])])
    return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        (CONVNEXT, "ConvNeXt of 1+1+2+1 blocks and 8 channels"),
        (SWIN, "Swin of 1+1+2+1 blocks and 4 channels with windows of 3"),
    ],
    ids=["ConvNeXt", "Swin"],
)
def test_names_are_undone_and_tell_the_configuration(tmp_path, backbone, name):
    config = detector(backbone)
    variables = random_variables(config)
    tensors = as_mmdetection(config, variables)
    index = {"backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": np.zeros((9, 9), np.int64)}
    checkpoint = {"meta": {"CLASSES": ("a", "b"), "epoch": 12}, "state_dict": tensors | index, "optimizer": {}}
    (tmp_path / "epoch_12.pth").write_bytes(pickle.dumps(checkpoint, 2))
    read = read_tensors(tmp_path / "epoch_12.pth")
    assert find_source(read) == "mmdetection"
    assert infer(read, "mmdetection") == config
    converted, report = convert(read, config, "mmdetection")
    assert report.loaded == len(tensors) == len(flat(variables))
    jax.tree.map(np.testing.assert_array_equal, converted, variables)
    assert describe(config) == f"{name} FPN, masks, 5 classes"
    assert "pixels are RGB" in assumptions(config, "mmdetection")[0]
    published = published_classes(replace(config, num_classes=80), "mmdetection")
    assert published is not None
    assert (published.names[0], published.names[-1], published.ids[-1]) == ("person", "toothbrush", 90)


def test_published_sizes_have_names():
    for backbone, name in (
        (SwinConfig(), "Swin-T FPN, masks, 80 classes"),
        (SwinConfig(depths=(2, 2, 18, 2)), "Swin-S FPN, masks, 80 classes"),
        (ConvNeXtConfig(), "ConvNeXt-T FPN, masks, 80 classes"),
    ):
        assert describe(MaskRCNNConfig(backbone=FPNConfig(backbone))) == name


def test_tokens_are_merged_in_the_order_of_unfolding(torchvision: ModuleType):
    """MMDetection unfolds, normalises and reduces; the sum over the inputs is the same as ours."""
    import torch

    config = detector(SWIN)
    variables = random_variables(config)
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in as_mmdetection(config, variables).items()}
    x = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    unfolded = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
    merge = "backbone.stages.0.downsample"
    normed = torch.nn.functional.layer_norm(
        unfolded, (16,), tensors[f"{merge}.norm.weight"], tensors[f"{merge}.norm.bias"]
    )
    expected = (normed @ tensors[f"{merge}.reduction.weight"].T).numpy().reshape(1, 3, 4, 8)
    ours = networks(config, variables).backbone.bottom_up.stage2.merge(jnp.asarray(x.numpy().transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_history_of_losses_beside_the_weights_is_left_out(tmp_path):
    """MMEngine's checkpoints hold objects of its own; nothing of them is kept or run."""
    buffer = b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}X\x0a\x00\x00\x00max_lengthK\x05sb"
    tree = pickle.dumps({"state_dict": {"a": np.ones(1)}, "message_hub": 7}, 2)
    assert tree.count(b"K\x07") == 1
    (tmp_path / "a.pth").write_bytes(tree.replace(b"K\x07", buffer))
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.pth")["a"], np.ones(1))


def test_backbones_that_are_not_known_there_are_named():
    tensors = as_mmdetection(detector(SWIN), random_variables(detector(SWIN)))
    other = {re.sub(r"^backbone\.(stages|patch_embed)", r"backbone.layer", name): x for name, x in tensors.items()}
    with pytest.raises(UserError, match="its backbone is none that this project knows of such detectors"):
        infer(other, "mmdetection")
    with pytest.raises(
        UserError, match=r"backbone is a Swin of 1\+1\+2\+1 .* is a ConvNeXt of 1\+1\+2\+1 blocks and 8 "
    ):
        check_backbone(tensors, "mmdetection", detector(CONVNEXT))
    check_backbone(tensors, "mmdetection", detector(replace(SWIN, freeze_at=2)))


def test_cascades_are_not_known_there():
    cascade = {f"roi_head.bbox_head.{stage}.fc_cls.weight": np.ones((6, 12)) for stage in range(3)}
    assert find_source(cascade) == "mmdetection"
    with pytest.raises(UserError, match="no tensor for box_head/class_logits/bias, so it is no Faster or Mask R-CNN"):
        count_classes(cascade, "mmdetection")
