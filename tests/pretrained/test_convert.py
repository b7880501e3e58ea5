"""Tensors of torchvision and Detectron2 in this project's places."""

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
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    NormConfig,
    PointRendConfig,
    ResNetConfig,
    RPNConfig,
    SemanticHeadConfig,
    architectures,
    init,
)
from mask_rcnn_jax.pretrained import (
    ByName,
    Report,
    assumptions,
    convert,
    describe,
    find_source,
    infer,
    match,
    read_tensors,
    transplant,
)
from tests.pretrained.naming import as_detectron2, flat, random_variables

RESNET = ResNetConfig(width=8, stem_width=16)
FPN = MaskRCNNConfig(
    num_classes=5,
    backbone=FPNConfig(RESNET, channels=16),
    box_head=BoxHeadConfig(fc_channels=24),
    mask_head=MaskHeadConfig(channels=16),
)


def with_norm_everywhere(norm: NormConfig) -> MaskRCNNConfig:
    """Group norm, and the large-scale jitter baselines: norms in pyramid and heads, four convs and one layer."""
    resnet = ResNetConfig(width=32, norm=norm, stride_in_1x1=norm.kind != "group_norm")
    return MaskRCNNConfig(
        num_classes=5,
        backbone=FPNConfig(resnet, channels=32, norm=norm),
        rpn=RPNConfig(num_convs=2 if norm.kind == "batch_norm" else 1),
        box_head=BoxHeadConfig(num_convs=4, conv_channels=32, num_fcs=1, fc_channels=24, norm=norm),
        mask_head=MaskHeadConfig(channels=32, norm=norm),
    )


def narrow_heads(config: MaskRCNNConfig) -> MaskRCNNConfig:
    keypoint = config.keypoint_head and KeypointHeadConfig(num_convs=8, channels=16)
    mask = config.mask_head and replace(config.mask_head, channels=16)
    box = replace(config.box_head, fc_channels=24 if config.box_head.num_fcs else 1024)
    return replace(config, box_head=box, mask_head=mask, keypoint_head=keypoint)


CONFIGS = {
    "fpn": FPN,
    "class-agnostic": replace(
        FPN,
        box_head=replace(FPN.box_head, class_agnostic=True),
        mask_head=replace(FPN.mask_head, class_agnostic=True),
    ),
    "c4": narrow_heads(architectures.c4(RESNET, 5)),
    "dc5": narrow_heads(architectures.dc5(RESNET, 5)),
    "r101": replace(FPN, backbone=FPNConfig(replace(RESNET, depth=101), channels=16), mask_head=None),
    "x101": replace(
        FPN,
        backbone=FPNConfig(
            ResNetConfig(depth=101, width=8, stem_width=16, groups=4, width_per_group=2, stride_in_1x1=False), 16
        ),
        pixel_std=(58.395, 57.12, 57.375),
    ),
    "group norm": with_norm_everywhere(NormConfig(kind="group_norm")),
    "batch norm": with_norm_everywhere(NormConfig(kind="batch_norm")),
    "cascade": architectures.cascade(FPN),
    "keypoints": narrow_heads(architectures.keypoints(FPN)),
    "point rend": replace(
        FPN, mask_head=PointRendConfig(coarse_channels=12, coarse_fc_channels=20, point_channels=14, num_point_fcs=2)
    ),
    "fast": replace(architectures.fast_rcnn(FPN), box_head=FPN.box_head),
    "panoptic": replace(FPN, heads=(SemanticHeadConfig(num_kinds=4, channels=32),)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_detectron2_names_are_undone_and_tell_the_configuration(config):
    variables = random_variables(config)
    tensors = as_detectron2(variables)
    tensors["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))  # the zoo's files have these
    assert find_source(tensors) == "detectron2"
    assert infer(tensors, "detectron2") == config
    converted, report = convert(tensors, config, "detectron2")
    assert report.loaded == len(flat(variables))
    jax.tree.map(np.testing.assert_array_equal, converted, variables)


@pytest.mark.parametrize(
    "name", ["fpn", "c4", "dc5", "x101_fpn", "cascade", "keypoint", "pointrend", "fast_rcnn", "panoptic_fpn"]
)
def test_reference_weights_of_detectron2_leave_nothing_over(shared, name):
    tensors = read_tensors(shared / "golden" / "detectron2" / f"{name}.safetensors")
    weights = {key.removeprefix("weights/"): tensors[key] for key in tensors if key.startswith("weights/")}
    settings = (shared / "golden" / "detectron2" / f"{name}.yaml").read_text()
    config = infer(weights, "detectron2")
    _, report = convert(weights, config, "detectron2")
    assert report.loaded == len(weights)
    assert config.num_classes == int(re.search(r"ROI_HEADS:.*?NUM_CLASSES: (\d+)", settings, re.DOTALL)[1])
    resnet = config.backbone.bottom_up if isinstance(config.backbone, FPNConfig) else config.backbone
    for key, value in {
        "DEPTH": resnet.depth,
        "NUM_GROUPS": resnet.groups,
        "STRIDE_IN_1X1": str(resnet.stride_in_1x1).lower(),
        "RES5_DILATION": resnet.res5_dilation,
        "RES2_OUT_CHANNELS": resnet.stage_channels("res2"),
        "STEM_OUT_CHANNELS": resnet.stem_width,
        "CLS_AGNOSTIC_BBOX_REG": str(config.box_head.class_agnostic).lower(),
        "MASK_ON": str(config.mask_head is not None).lower(),
        "KEYPOINT_ON": str(config.keypoint_head is not None).lower(),
        "NUM_FC": config.box_head.num_fcs,
    }.items():
        assert f"{key}: {value}\n" in settings, key


def test_proposals_that_come_with_the_images_are_told_by_the_absence_of_an_rpn():
    config = CONFIGS["fast"]
    assert describe(config) == "ResNet-50 FPN, frozen batch norm, given proposals, 5 classes"
    assert "RoIAlign's, as in the published Fast R-CNN (model.box_head.pooler)" in assumptions(config, "detectron2")[-1]
    assert "RoIAlign" not in "".join(assumptions(FPN, "detectron2"))


# --- torchvision ------------------------------------------------------------------------------------------------------


def state_dict(model) -> dict[str, np.ndarray]:
    """With values that differ, so that no two tensors can change places."""
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=tuple(tensor.shape)).astype(np.float32) for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ["maskrcnn_v1", "fasterrcnn_v1", "keypointrcnn_v1", "maskrcnn_v2", "fasterrcnn_v2"])
def test_every_model_of_torchvision_is_known(torchvision: ModuleType, name):
    from tests.conformance import reference

    tensors = state_dict(reference.narrow(getattr(reference, name)(1 if "keypoint" in name else 6)))
    assert find_source(tensors) == "torchvision"
    config = infer(tensors, "torchvision")
    _, report = convert(tensors, config, "torchvision")
    counted = [tensor for tensor in tensors if not tensor.endswith("num_batches_tracked")]
    assert report.loaded == len(counted)
    resnet = config.backbone.bottom_up
    assert resnet.norm == NormConfig("batch_norm") if "v2" in name else NormConfig(epsilon=0.0)
    assert config.num_classes == (1 if "keypoint" in name else 6)
    assert (config.mask_head is not None) == ("mask" in name)
    assert (config.keypoint_head is not None) == ("keypoint" in name)
    assert (config.channel_order, resnet.stride_in_1x1, config.box_head.pooler.aligned) == ("rgb", False, False)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"])
def test_full_size_models_of_torchvision_have_the_default_widths(torchvision: ModuleType, name):
    import torch

    with torch.device("meta"):
        model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    tensors = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in model.state_dict().items()}
    config = infer(tensors, "torchvision")
    norm = NormConfig(kind="batch_norm") if name.endswith("v2") else NormConfig(kind="none")
    backbone = ResNetConfig(norm=NormConfig(kind="batch_norm"), stride_in_1x1=False)
    assert config.backbone == FPNConfig(backbone, norm=norm)
    assert config.num_classes == (1 if "keypoint" in name else 90)
    assert config.box_head.fc_channels == 1024
    assert config.mask_head is None or config.mask_head.channels == 256
    assert config.keypoint_head is None or (config.keypoint_head.num_convs, config.keypoint_head.channels) == (8, 512)


@pytest.fixture(scope="module")
def torchvision_tensors(torchvision: ModuleType) -> dict[str, np.ndarray]:
    from tests.conformance import reference

    return state_dict(reference.narrow(reference.maskrcnn_v1(6)))


def test_names_of_the_published_files_mean_the_same(torchvision_tensors):
    """The .pth files of 2019 have no second number in the pyramid and the RPN, and named mask convolutions."""
    older = {}
    for name, tensor in torchvision_tensors.items():
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        older[re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)] = tensor
    assert len(older.keys() - torchvision_tensors.keys()) == 26
    config = infer(older, "torchvision")
    assert config == infer(torchvision_tensors, "torchvision")
    found, _ = convert(older, config, "torchvision")
    expected, _ = convert(torchvision_tensors, config, "torchvision")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_background_moves_to_the_end(torchvision_tensors):
    """Class k of torchvision, from 1, is class k - 1 here; its class 0 is the last."""
    variables, _ = convert(torchvision_tensors, infer(torchvision_tensors, "torchvision"), "torchvision")
    found, heads = flat(variables), "roi_heads."
    logits = torchvision_tensors[f"{heads}box_predictor.cls_score.weight"]
    deltas = torchvision_tensors[f"{heads}box_predictor.bbox_pred.weight"]
    masks = torchvision_tensors[f"{heads}mask_predictor.mask_fcn_logits.weight"]
    for k in range(1, 7):
        np.testing.assert_array_equal(found["box_head/class_logits/kernel"][:, k - 1], logits[k])
        np.testing.assert_array_equal(found["mask_head/predictor_kernel"][:, k - 1], masks[k, :, 0, 0])
        for d in range(4):
            np.testing.assert_array_equal(found["box_head/box_deltas/kernel"][:, 4 * (k - 1) + d], deltas[4 * k + d])
    np.testing.assert_array_equal(found["box_head/class_logits/kernel"][:, 6], logits[0])
    assert found["box_head/box_deltas/bias"].shape == (24,)
    assert found["mask_head/predictor_bias"].shape == (6,)


# --- What does not fit ------------------------------------------------------------------------------------------------


def refusal(tensors: dict[str, np.ndarray], config: MaskRCNNConfig = FPN, source="detectron2", variables=None) -> str:
    with pytest.raises(UserError) as error:
        convert(tensors, config, source, variables)
    return str(error.value)


def test_everything_that_does_not_fit_is_listed_at_once():
    tensors = as_detectron2(random_variables(FPN))
    tensors["roi_heads.mask_iou_head.weight"] = np.ones(3)
    tensors["backbone.fpn_lateral2.weight"] = np.ones((16, 8, 1, 1))
    tensors["backbone.fpn_lateral3.weight"] = np.ones(16)
    for level in (2, 3, 4, 5):
        del tensors[f"backbone.fpn_output{level}.weight"], tensors[f"backbone.fpn_output{level}.bias"]
    message = refusal(tensors)
    assert "8 missing: backbone/output2/conv/bias, backbone/output2/conv/kernel" in message
    assert message.count("backbone/output") == 5
    assert "and 3 more" in message
    assert "1 without a place in the model: roi_heads.mask_iou_head.weight" in message
    assert "2 of another shape" in message
    assert "backbone.fpn_lateral2.weight, as backbone/lateral2/conv/kernel, is (1, 1, 8, 16)" in message
    assert "should be (1, 1, 32, 16)" in message
    assert len(message.splitlines()) == 4


def test_two_names_for_one_place_are_refused(torchvision_tensors):
    tensors = torchvision_tensors | {"rpn.head.conv.weight": torchvision_tensors["rpn.head.conv.0.0.weight"]}
    config = infer(tensors, "torchvision")
    assert "without a place in the model: rpn.head.conv.weight" in refusal(tensors, config, "torchvision")


def test_frozen_statistics_never_keep_their_initial_values(torchvision_tensors):
    config = infer(torchvision_tensors, "torchvision")
    without = {name: tensor for name, tensor in torchvision_tensors.items() if "running_" not in name}
    assert "106 missing: backbone/bottom_up/res2/block1/conv1/norm/mean" in refusal(without, config, "torchvision")
    some = as_detectron2(random_variables(FPN))
    del some["backbone.bottom_up.stem.conv1.norm.running_var"]
    assert "1 missing: backbone/bottom_up/stem/norm/var" in refusal(some)


def test_detectron2_norms_without_any_statistics_are_affine_maps():
    tensors = {name: x for name, x in as_detectron2(random_variables(FPN)).items() if "running_" not in name}
    variables, _ = convert(tensors, infer(tensors, "detectron2"), "detectron2")
    for path, leaf in flat(variables).items():
        if path.endswith(("/mean", "/var")):
            assert (leaf == path.endswith("/var")).all(), path


# --- Fine-tuning ------------------------------------------------------------------------------------------------------


def test_another_number_of_classes_keeps_the_predictors_at_random():
    given = random_variables(FPN, seed=1)
    config = replace(FPN, num_classes=2)
    before = init(config, jax.random.key(0))
    after, report = convert(as_detectron2(given), config, "detectron2", before)
    heads = ("box_head/class_logits", "box_head/box_deltas", "mask_head/predictor")
    assert len(report.reset) == 6
    assert "box_head/box_deltas, box_head/class_logits, mask_head/predictor" in "\n".join(report.lines())
    for path, leaf in flat(after).items():
        np.testing.assert_array_equal(leaf, flat(before if path.startswith(heads) else given)[path], path)
    assert "6 of another shape" in refusal(as_detectron2(given), config)


def test_the_predictors_of_every_stage_go_by_the_names_of_the_classes():
    cascade = architectures.cascade(FPN)
    given, initial = random_variables(cascade, seed=1), init(cascade, jax.random.key(0))
    after, report = transplant(given, cascade, initial, ByName(match("abcde", "exyza")))
    assert report.lines()[1:] == [
        "  predictors kept by name for 2 of its 5 classes: e, a",
        "  not among its classes, so reset at random: x, y, z",
    ]
    for path in (f"{stage}/class_logits/kernel" for stage in ("box_head", "cascade/stage2", "cascade/stage3")):
        found, before, random = (flat(tree)[path] for tree in (after, given, initial))
        np.testing.assert_array_equal(found[:, [0, 4, 5]], before[:, [4, 0, 5]], path)
        np.testing.assert_array_equal(found[:, 1:4], random[:, 1:4], path)
    # Where no class has the name of another, deltas that are not of classes stay.
    _, report = transplant(given, cascade, initial, ByName(match("abcde", "vwxyz")))
    assert not any("box_deltas" in path for path in report.reset)
    assert (
        "of other classes, so reset at random: box_head/class_logits, cascade/stage2/class_logits" in report.lines()[1]
    )


def test_the_names_that_point_rend_had_mean_the_same():
    tensors = as_detectron2(random_variables(CONFIGS["point rend"]))
    older = {}
    for name, tensor in tensors.items():
        name = name.replace("mask_head.point_head", "mask_point_head").replace(
            "mask_head.coarse_head", "mask_coarse_head"
        )
        older[name.replace("mask_coarse_head.fc", "mask_coarse_head.coarse_mask_fc")] = tensor
    assert len(older.keys() - tensors.keys()) == 16
    found, expected = (convert(x, CONFIGS["point rend"], "detectron2")[0] for x in (older, tensors))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_point_rend_reads_and_predicts_the_classes_by_name():
    """The point head reads the coarse logits of every class, after 16 features or 14 channels."""
    config = CONFIGS["point rend"]
    given, initial = random_variables(config, seed=1), init(replace(config, num_classes=3), jax.random.key(0))
    after, _ = transplant(given, replace(config, num_classes=3), initial, ByName(match("abcde", "exb")))
    found, before, random = (flat(tree) for tree in (after, given, initial))
    path = "mask_head/coarse_head/prediction/kernel"
    parts, of_given, of_random = (x[path].reshape(20, -1, 49) for x in (found, before, random))
    np.testing.assert_array_equal(parts[:, [0, 2]], of_given[:, [4, 1]])
    np.testing.assert_array_equal(parts[:, 1], of_random[:, 1])
    path = "mask_head/point_head/fc1/kernel"
    np.testing.assert_array_equal(found[path][[*range(16), 16, 18]], before[path][[*range(16), 20, 17]])
    np.testing.assert_array_equal(found[path][17], random[path][17])
    path = "mask_head/point_head/predictor_kernel"
    rows = [*range(14), 14, 16], [*range(14), 18, 15]
    np.testing.assert_array_equal(found[path][rows[0]][:, [0, 2]], before[path][rows[1]][:, [4, 1]])
    np.testing.assert_array_equal(found[path][:, 1], random[path][:, 1])
    np.testing.assert_array_equal(found[path][15], random[path][15])
    _, report = convert(as_detectron2(given), replace(config, num_classes=3), "detectron2", initial)
    assert {path for path in report.reset if path.startswith("mask_head")} == {
        "mask_head/coarse_head/prediction/bias",
        "mask_head/coarse_head/prediction/kernel",
        "mask_head/point_head/fc1/kernel",
        "mask_head/point_head/fc2/kernel",
        "mask_head/point_head/predictor_bias",
        "mask_head/point_head/predictor_kernel",
    }


def test_rows_of_other_numbers_of_classes():
    """The predictors of a few of COCO's classes."""
    some = replace(FPN, num_classes=2)
    given = random_variables(FPN, seed=1)
    after, report = transplant(given, some, init(some, jax.random.key(0)), ByName(match("abcde", "db")))
    assert report.lines()[1:] == ["  predictors kept by name for 2 of its 5 classes: d, b"]
    deltas = flat(given)["box_head/box_deltas/kernel"]
    np.testing.assert_array_equal(flat(after)["box_head/box_deltas/kernel"], deltas[:, [12, 13, 14, 15, 4, 5, 6, 7]])
    masks = flat(given)["mask_head/predictor_bias"]
    np.testing.assert_array_equal(flat(after)["mask_head/predictor_bias"], masks[np.array([3, 1])])


def test_classes_of_one_name_keep_their_own_predictors():
    found = [match("aab", names) for names in ("aab", "baaa", "bc")]
    same, more, other = (matched for matched in found if matched is not None)
    assert (same.places, same.describe("classes")) == ((0, 1, 2), ["  predictors kept: its classes are the same"])
    assert (more.places, more.reset) == ((2, 0, 1, None), ["a"])
    assert other.places == (2, None)


def test_keypoints_go_by_their_names():
    """Without compiling or drawing a model: the rows alone."""
    keypoints = ByName(keypoints=match(["nose", "left", "right"], ["right", "tail", "nose"]))
    array, initial = np.arange(6.0).reshape(2, 3), -np.ones((2, 3))
    taken = keypoints.take("keypoint_head/deconv/kernel", array, initial)
    np.testing.assert_array_equal(taken, [[2, -1, 0], [5, -1, 3]])
    assert keypoints.take("box_head/class_logits/bias", array[0], initial[0]) is None  # their number decides
    assert match((), ["nose"]) is match(["nose"], ()) is None
    report = Report(7, reset=("keypoint_head/deconv/bias",), by_name=ByName(keypoints=match(["a"], ["b"])))
    assert report.lines()[1:] == ["  of other keypoints, so reset at random: keypoint_head/deconv"]
    report = Report(7, reset=("keypoint_head/deconv/bias", "box_head/class_logits/bias"))
    assert report.lines()[1:] == [
        "  of another number of classes, so reset at random: box_head/class_logits",
        "  of another number of keypoints, so reset at random: keypoint_head/deconv",
    ]


def test_class_agnostic_deltas_survive_another_number_of_classes():
    cascade = architectures.cascade(FPN)
    config = replace(cascade, num_classes=2)
    _, report = transplant(random_variables(cascade), config, init(config, jax.random.key(0)))
    stages = ("box_head", "cascade/stage2", "cascade/stage3")
    expected = {f"{stage}/class_logits/{leaf}" for stage in stages for leaf in ("kernel", "bias")}
    assert set(report.reset) == expected | {"mask_head/predictor_kernel", "mask_head/predictor_bias"}


def test_class_agnostic_masks_survive_another_number_of_classes():
    agnostic = CONFIGS["class-agnostic"]
    before, one = random_variables(agnostic), replace(agnostic, num_classes=1)
    for by_name in (ByName(), ByName(match("abcde", "x"))):
        after, report = transplant(before, one, init(one, jax.random.key(0)), by_name)
        assert set(report.reset) == {"box_head/class_logits/kernel", "box_head/class_logits/bias"}
        kernel = "mask_head/predictor_kernel"
        np.testing.assert_array_equal(flat(after)[kernel], flat(before)[kernel])
    _, report = transplant(random_variables(FPN), agnostic, init(agnostic, jax.random.key(0)))
    assert {path.partition("/")[2] for path in report.reset} >= {"predictor_kernel", "predictor_bias"}


def test_a_mask_head_may_be_added_or_left_out():
    boxes = replace(FPN, mask_head=None)
    added, report = transplant(random_variables(boxes), FPN, init(FPN, jax.random.key(0)))
    assert {path.partition("/")[0] for path in report.missing} == {"mask_head"}
    assert flat(added).keys() == flat(random_variables(FPN)).keys()
    _, report = convert(as_detectron2(random_variables(FPN)), boxes, "detectron2", init(boxes, jax.random.key(0)))
    assert len(report.unused) == 12
    assert all("mask_head" in name for name in report.unused)


def test_fine_tuning_takes_no_other_widths():
    config = replace(FPN, box_head=replace(FPN.box_head, fc_channels=32))
    message = refusal(as_detectron2(random_variables(FPN)), config, variables=init(config, jax.random.key(0)))
    assert "6 of another shape" in message
    assert "box_head/fc1/kernel, is (784, 24) and should be (784, 32)" in message


def test_the_deconvolution_is_pytorchs(torchvision: ModuleType):
    import torch
    from flax import nnx

    from mask_rcnn_jax.models.heads.keypoint import Deconv4x4
    from mask_rcnn_jax.models.layers import Deconv2x2
    from mask_rcnn_jax.pretrained.names.table import DECONV

    for kind, side, padding in ((Deconv2x2, 2, 0), (Deconv4x4, 4, 1)):
        theirs = torch.nn.ConvTranspose2d(3, 5, side, stride=2, padding=padding)
        ours = kind(3, 5, rngs=nnx.Rngs(0))
        ours.kernel[...] = DECONV["weight"][1](theirs.weight.detach().numpy(), 1)
        ours.bias[...] = theirs.bias.detach().numpy()
        x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=1e-5)
