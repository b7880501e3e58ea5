"""A detector as Detectron wrote it, with Caffe2's names, beside what Detectron2 makes of the same file."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from mask_rcnn_jax.models import (
    BoxHeadConfig,
    FPNConfig,
    KeypointHeadConfig,
    MaskRCNNConfig,
    ResNetConfig,
    architectures,
)
from mask_rcnn_jax.pretrained import assumptions, convert, describe, find_source, infer, read_tensors
from tests.pretrained.naming import as_detectron2, flat, random_variables


def test_blobs_are_what_detectron2_reads_of_them(shared):
    """Every tensor, with background moved and cut off, and norms that are a scale and a shift."""
    pytest.importorskip("torch", reason="the recordings are read beside PyTorch's layers")
    from tests.conformance.golden import Golden

    golden = Golden(shared, "detectron1")
    tensors = read_tensors(shared / "golden" / "detectron2" / "detectron1.pkl")
    assert any(name.endswith("_momentum") for name in tensors)
    assert find_source(tensors) == "detectron1"
    inferred = infer(tensors, "detectron1")
    found, report = convert(tensors, inferred, "detectron1")
    expected, of_detectron2 = convert(golden.weights, golden.config, "detectron2")
    assert report.loaded == of_detectron2.loaded == len(golden.weights)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Detectron2's configuration of it has other means of pixels, and tests are of fewer proposals.
    assert inferred.pixel_mean == (122.7717, 115.9465, 102.9801)
    rpn = replace(inferred.rpn, smooth_l1_beta=0.1111, **of_tests(golden.config.rpn))
    box_head = replace(inferred.box_head, samples=128, max_detections=50)
    assert golden.config == replace(inferred, pixel_mean=golden.config.pixel_mean, rpn=rpn, box_head=box_head)


def of_tests(rpn) -> dict[str, int]:
    names = ("pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test")
    return {name: getattr(rpn, name) for name in names}


LAST = {"2": 2, "3": 3, "4": 5, "5": 2}  # block of each stage
LATERAL = {"2": "_lateral", "3": "_lateral", "4": "_lateral", "5": ""}


def as_detectron1(variables) -> dict[str, np.ndarray]:
    """The blobs of a detector on ResNet-50 with these variables, as Detectron names them."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    blobs, tensors = {}, as_detectron2(variables)
    has_pyramid = "backbone.fpn_lateral2.weight" in tensors
    for name, tensor in tensors.items():
        if "running" in name:
            continue
        name = re.sub(r"^(backbone\.bottom_up|backbone|roi_heads)\.", "", name)
        name = re.sub(r"fpn_output(\d)", lambda m: f"fpn_res{m[1]}_{LAST[m[1]]}_sum", name)
        name = re.sub(r"fpn_lateral(\d)", lambda m: f"fpn_inner_res{m[1]}_{LAST[m[1]]}_sum" + LATERAL[m[1]], name)
        name = name.replace("stem.conv1.norm", "res_conv1.norm").replace("stem.conv1", "conv1")
        name = re.sub(r"(res\d)\.(\d+)\.(\w+)", lambda m: f"{m[1]}_{m[2]}_{branches[m[3]]}", name)
        name = name.replace(".norm.weight", "_bn_s").replace(".norm.bias", "_bn_b")
        level = "_fpn2" if has_pyramid else ""
        name = name.replace("proposal_generator.rpn_head.conv.", f"conv_rpn{level}.")
        name = name.replace("proposal_generator.rpn_head.objectness_logits", f"rpn_cls_logits{level}")
        name = name.replace("proposal_generator.rpn_head.anchor_deltas", f"rpn_bbox_pred{level}")
        name = (
            name.replace("box_head.fc1", "fc6")
            .replace("box_head.fc2", "fc7")
            .replace("keypoint_head.score", "kps_score")
            .replace("keypoint_head.", "")
        )
        name = name.replace("mask_head.deconv", "conv5_mask").replace("mask_head.predictor", "mask_fcn_logits")
        name = name.replace("box_predictor.", "")
        name = name.replace(".weight", "_w").replace(".bias", "_b")
        layer = name.rpartition("_")[0]
        background = {"cls_score": 1, "bbox_pred": 4, "mask_fcn_logits": 1}.get(layer, 0)
        if layer == "cls_score":
            tensor = np.roll(tensor, 1, axis=0)
        elif background:
            tensor = np.concatenate([np.full_like(tensor[:background], 9), tensor])
        blobs[name] = tensor
    return blobs


def test_without_a_pyramid_the_last_stage_is_on_rois():
    c4 = architectures.c4(ResNetConfig(width=4, stem_width=8), 5)
    config = replace(c4, mask_head=c4.mask_head and replace(c4.mask_head, channels=8))
    variables = random_variables(config)
    blobs = as_detectron1(variables)
    assert {"res5_2_branch2c_bn_s", "conv_rpn_w", "mask_fcn_logits_b"} <= blobs.keys()
    inferred = infer(blobs, "detectron1")
    assert inferred.res5_on_rois
    assert (inferred.box_head.pooler.aligned, inferred.box_head.pooler.sampling_ratio) == (False, 0)
    converted, report = convert(blobs, inferred, "detectron1")
    assert report.loaded == len(flat(variables))
    for path, leaf in flat(converted).items():
        if path.endswith(("/mean", "/var")):
            assert (leaf == path.endswith("/var")).all(), path
        else:
            np.testing.assert_array_equal(leaf, flat(variables)[path], path)
    assert describe(inferred) == "ResNet-50 C4, frozen batch norm, masks, 5 classes"
    (stride, pixels, *_) = assumptions(inferred, "detectron1")
    assert "1x1" in stride
    assert "BGR, less 102.9801, 115.9465, 122.7717" in pixels


def test_persons_have_keypoints():
    backbone = FPNConfig(ResNetConfig(width=4, stem_width=8), channels=8)
    plain = architectures.keypoints(MaskRCNNConfig(backbone=backbone, box_head=BoxHeadConfig(fc_channels=12)))
    config = replace(plain, keypoint_head=KeypointHeadConfig(channels=8))
    variables = random_variables(config)
    blobs = as_detectron1(variables) | {"kps_score_w": np.ones((17, 17, 4, 4)), "kps_score_b": np.ones(17)}
    assert {"fpn_inner_res5_2_sum_w", "rpn_bbox_pred_fpn2_b", "conv_fcn8_w", "kps_score_lowres_w"} <= blobs.keys()
    inferred = infer(blobs, "detectron1")
    converted, _ = convert(blobs, inferred, "detectron1")
    for path, leaf in flat(converted).items():
        if not path.endswith(("/mean", "/var")):
            np.testing.assert_array_equal(leaf, flat(variables)[path], path)
    head = inferred.keypoint_head
    assert head is not None
    assert (head.num_convs, head.channels, head.num_keypoints) == (8, 8, 17)
    assert (head.pooler.aligned, head.pooler.sampling_ratio, head.pooler.output_size) == (False, 2, 14)
    assert describe(inferred) == "ResNet-50 FPN, frozen batch norm, keypoints, one class"
