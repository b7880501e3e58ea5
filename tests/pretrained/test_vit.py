"""ViTDet's files of Detectron2, and ViTs that were trained by themselves, under MAE's names."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, SimplePyramidConfig, ViTConfig, architectures
from mask_rcnn_jax.pretrained import assumptions, convert, describe, find_source, infer, load_weights, read_tensors
from mask_rcnn_jax.training import restore_for_inference
from mask_rcnn_jax.training.importing import import_weights
from tests.pretrained.naming import as_detectron2, flat, random_variables


def vitdet() -> MaskRCNNConfig:
    vit = ViTConfig(channels=16, depth=3, heads=2, window=3, global_blocks=(1,), image_size=96, pretrained_size=64)
    config = architectures.vitdet(vit, 5)
    return replace(
        config,
        backbone=SimplePyramidConfig(vit, channels=12),
        box_head=replace(config.box_head, conv_channels=12, fc_channels=24),
        mask_head=replace(config.mask_head, channels=12),
    )


def mae() -> dict[str, np.ndarray]:
    """A ViT's tensors as MAE's training has them: what detectors do without is there, relative positions are not."""
    tensors = as_detectron2(random_variables(vitdet(), seed=1))
    names = (name for name in tensors if name.startswith("backbone.net.") and ".rel_pos_" not in name)
    of_vit = {name.removeprefix("backbone.net."): tensors[name] for name in names}
    beside = {"cls_token": (1, 1, 16), "mask_token": (1, 1, 8), "norm.weight": (16,), "norm.bias": (16,)}
    beside |= {"decoder_embed.weight": (8, 16), "decoder_pos_embed": (1, 17, 8), "decoder_blocks.0.norm1.bias": (8,)}
    return of_vit | {name: np.ones(shape, np.float32) for name, shape in beside.items()}


@pytest.mark.parametrize("config", [vitdet(), architectures.cascade(vitdet())], ids=["plain", "cascade"])
def test_detectron2_names_are_undone_and_tell_the_configuration(config):
    variables = random_variables(config)
    tensors = as_detectron2(variables)
    assert find_source(tensors) == "detectron2"
    assert infer(tensors, "detectron2") == config
    converted, report = convert(tensors, config, "detectron2")
    assert report.loaded == len(flat(variables))
    jax.tree.map(np.testing.assert_array_equal, converted, variables)


def test_published_weights_leave_nothing_over_and_tell_the_configuration(shared):
    tensors = read_tensors(shared / "golden" / "detectron2" / "vitdet.safetensors")
    weights = {key.removeprefix("weights/"): tensors[key] for key in tensors if key.startswith("weights/")}
    settings = (shared / "golden" / "detectron2" / "vitdet.yaml").read_text()
    assert find_source(weights) == "detectron2"
    config = infer(weights, "detectron2")
    _, report = convert(weights, config, "detectron2")
    assert report.loaded == len(weights)
    vit = config.backbone.bottom_up
    for key, value in {
        "img_size": vit.image_size,
        "patch_size": vit.patch,
        "embed_dim": vit.channels,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "window_size": vit.window,
        "mlp_ratio": vit.mlp_ratio,
        "num_classes": config.num_classes,
        "square_pad": vit.image_size,
    }.items():
        assert f" {key}: {value}\n" in settings, key
    windows = re.search(r"window_block_indexes:\n((?:    - \d+\n)+)", settings)[1].replace("-", "").split()
    assert set(range(vit.depth)) - set(map(int, windows)) == set(vit.global_blocks)
    assert describe(config) == "ViT with 4 blocks of 64 channels, simple pyramid, layer norm, masks, 12 classes"
    assert "images are padded to squares of 256 (data.canvas)" in assumptions(config, "detectron2")


def test_an_import_pads_images_to_the_square_of_the_model(tmp_path: Path):
    np.savez(tmp_path / "vitdet.npz", **as_detectron2(random_variables(vitdet())))
    import_weights(tmp_path / "vitdet.npz", tmp_path / "imported")
    config, _, _ = restore_for_inference(tmp_path / "imported")
    assert config.model == vitdet()
    assert (config.data.canvas, config.data.max_side, config.data.short_side_eval) == ((96, 96), 96, 96)


def test_a_vit_of_mae_is_taken_and_relative_positions_stay_what_they_were(tmp_path: Path):
    config, tensors = vitdet(), mae()
    np.savez(tmp_path / "mae.npz", **tensors)
    start = random_variables(config)
    variables, (first, second) = load_weights(tmp_path / "mae.npz", config, start, ["thing"] * 5)
    assert first == f"{2 + 12 * 3 + 1} tensors loaded"
    assert second.startswith("  not in it, left at zero: backbone/bottom_up/block1/attention/relative_columns, ")
    before, after = flat(start), flat(variables)
    for path in before:
        taken = path.startswith("backbone/bottom_up/") and "/relative_" not in path
        assert np.array_equal(before[path], after[path]) != taken, path
    np.testing.assert_array_equal(after["backbone/bottom_up/positions"].reshape(-1, 16), tensors["pos_embed"][0, 1:])
    np.testing.assert_array_equal(
        after["backbone/bottom_up/patches/kernel"], tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        after["backbone/bottom_up/block2/mlp/expand/kernel"], tensors["blocks.1.mlp.fc1.weight"].T
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos_embed": np.zeros((1, 26, 16))}, r"pos_embed, as backbone/bottom_up/positions, is \(5, 5, 16\)"),
        ({"blocks.3.norm1.bias": np.zeros(16)}, r"1 without a place in the model: blocks\.3\.norm1\.bias"),
        ({"blocks.2.norm1.bias": None}, r"1 missing: backbone/bottom_up/block3/attention/norm/bias"),
    ],
    ids=["another grid", "another block", "a part"],
)
def test_a_vit_of_another_size_is_refused(tmp_path: Path, change, said):
    tensors = {name: tensor for name, tensor in (mae() | change).items() if tensor is not None}
    np.savez(tmp_path / "mae.npz", **tensors)
    with pytest.raises(UserError, match=rf"mae\.npz: .*(?s:.*){said}"):
        load_weights(tmp_path / "mae.npz", vitdet(), random_variables(vitdet()), ["thing"] * 5)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    np.savez(tmp_path / "resnet.npz", **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(UserError, match=r"resnet\.npz: .* no ViT that is known: conv1\.weight"):
        load_weights(tmp_path / "resnet.npz", vitdet(), random_variables(vitdet()), ["thing"] * 5)


def test_a_vit_without_relative_positions_does_not_tell_its_heads():
    tensors = as_detectron2(random_variables(vitdet()))
    plain = {name: tensor for name, tensor in tensors.items() if ".rel_pos_" not in name}
    with pytest.raises(UserError, match="no relative positions, which tell the number of heads; give an experiment"):
        infer(plain, "detectron2")
