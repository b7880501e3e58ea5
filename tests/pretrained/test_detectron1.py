"""A detector as Detectron wrote it, with Caffe2's names, beside what Detectron2 makes of the same file."""

import re
from dataclasses import replace

import jax
import numpy as np

from mask_rcnn_jax.models import ResNetConfig, architectures
from mask_rcnn_jax.pretrained import assumptions, convert, describe, find_source, infer, read_tensors
from tests.conformance.golden import Golden
from tests.pretrained.naming import as_detectron2, flat, random_variables


def test_blobs_are_what_detectron2_reads_of_them(shared):
    """Every tensor, with background moved and cut off, and norms that are a scale and a shift."""
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


def as_detectron1(variables) -> dict[str, np.ndarray]:
    """The blobs of a C4 detector with these variables, as Detectron names them."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    blobs = {}
    for name, tensor in as_detectron2(variables).items():
        if "running" in name:
            continue
        name = re.sub(r"^(backbone|roi_heads)\.", "", name)
        name = name.replace("stem.conv1.norm", "res_conv1.norm").replace("stem.conv1", "conv1")
        name = re.sub(r"(res\d)\.(\d+)\.(\w+)", lambda m: f"{m[1]}_{m[2]}_{branches[m[3]]}", name)
        name = name.replace(".norm.weight", "_bn_s").replace(".norm.bias", "_bn_b")
        name = name.replace("proposal_generator.rpn_head.conv.", "conv_rpn.")
        name = name.replace("proposal_generator.rpn_head.objectness_logits", "rpn_cls_logits")
        name = name.replace("proposal_generator.rpn_head.anchor_deltas", "rpn_bbox_pred")
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
