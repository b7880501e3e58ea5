"""The keypoint head and its loss against torchvision, Detectron2's golden values, and properties."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.heads import keypoint
from mask_rcnn_jax.models.heads.keypoint import Deconv4x4, KeypointHead, KeypointHeadConfig
from mask_rcnn_jax.models.pooler import pool
from mask_rcnn_jax.ops import decode_keypoints
from mask_rcnn_jax.ops.boxes import pairwise_iou
from mask_rcnn_jax.pretrained import read_tensors
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs

keypoint_losses = jax.jit(keypoint.keypoint_losses, static_argnums=0)

SMALL = KeypointHeadConfig(num_keypoints=5, num_convs=2, channels=12)
OUTPUT = [2, 3, 0, 1]  # torch's [in, out, y, x] to the deconvolution's kernel
CONV = [2, 3, 1, 0]  # torch's [out, in, y, x] to a convolution's


def build(config, in_channels, dtype=jnp.float32):
    head = KeypointHead(config, in_channels, rngs=nnx.Rngs(0))
    head.set_attributes(dtype=dtype, raise_if_not_found=False)
    return head


def load(head, convs, deconv):
    """Sets torch's weights, (weight, bias) of each layer."""
    for i, (weight, bias) in enumerate(convs):
        conv = getattr(head, f"conv{i + 1}").conv
        conv.kernel.set_value(jnp.array(weight.transpose(CONV)))
        conv.bias.set_value(jnp.array(bias))
    head.deconv.kernel.set_value(jnp.array(deconv[0].transpose(OUTPUT)))
    head.deconv.bias.set_value(jnp.array(deconv[1]))
    return head


def torchvision_head(in_channels, config):
    """torchvision's head and predictor as one module, with biases that are not zero."""
    import torch
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

    torch.manual_seed(0)
    convs = KeypointRCNNHeads(in_channels, [config.channels] * config.num_convs)
    reference = torch.nn.Sequential(*convs, KeypointRCNNPredictor(config.channels, config.num_keypoints))
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return reference


def numpy_pairs(reference):
    pairs = [parameter.detach().numpy() for parameter in reference.parameters()]
    return list(zip(pairs[::2], pairs[1::2], strict=True))


def scenes(seed, rois=9, instances=3, joints=5, side=8):
    """Logits, RoIs of which the last two are background, and ground truth of one image."""
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 100, (rois, 2, 2)), axis=1).reshape(rois, 4)
    keypoints = np.concatenate(
        [rng.uniform(0, 100, (instances, joints, 2)), rng.integers(0, 3, (instances, joints, 1))], axis=2
    )
    truth = GroundTruth(
        boxes=jnp.zeros((instances, 4)),
        classes=jnp.zeros(instances, jnp.int32),
        masks=jnp.zeros((instances, 2, 2), jnp.uint8),
        valid=jnp.ones(instances, bool),
        keypoints=jnp.array(keypoints, jnp.float32),
    )
    logits = jnp.array(rng.normal(size=(rois, joints, side, side)), jnp.float32)
    gt_index = jnp.array(rng.integers(0, instances, rois))
    return logits, sampled(jnp.array(boxes, jnp.float32), gt_index, jnp.arange(rois) < rois - 2), truth


def sampled(boxes, gt_index, foreground):
    """RoIs of a single class, 0."""
    return SampledRoIs(boxes, gt_index, jnp.where(foreground, 0, 1), foreground, jnp.ones_like(foreground))


def test_head_and_its_gradients_agree_with_torchvision(torchvision):
    import torch

    rng = np.random.default_rng(0)
    x, upstream = rng.normal(size=(4, 7, 14, 14)), rng.normal(size=(4, 5, 56, 56))
    reference = torchvision_head(7, SMALL).double()
    inputs = torch.tensor(x, requires_grad=True)
    expected = reference(inputs)
    torch.sum(expected * torch.tensor(upstream)).backward()
    gradients = [parameter.grad.numpy() for parameter in reference.parameters()]
    with jax.enable_x64(True):
        head = load(build(SMALL, 7, jnp.float64), *split_last(numpy_pairs(reference)))
        graph, params = nnx.split(head)

        def run(params, x):
            return nnx.merge(graph, params)(x.reshape(2, 2, *x.shape[1:])).reshape(4, 5, 56, 56)

        features = jnp.array(x.transpose(0, 2, 3, 1))
        logits, backward = jax.vjp(jax.jit(run), params, features)
        np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-9, atol=1e-9)
        of_params, of_features = backward(jnp.array(upstream))
        np.testing.assert_allclose(of_features.transpose(0, 3, 1, 2), inputs.grad.numpy(), rtol=1e-9, atol=1e-9)
        found = nnx.to_pure_dict(of_params)
        pairs = [(found[f"conv{i + 1}"]["conv"], CONV) for i in range(2)] + [(found["deconv"], OUTPUT)]
        for (layer, order), weight, bias in zip(pairs, gradients[::2], gradients[1::2], strict=True):
            np.testing.assert_allclose(layer["kernel"], weight.transpose(order), rtol=1e-9, atol=1e-8)
            np.testing.assert_allclose(layer["bias"], bias, rtol=1e-9, atol=1e-8)


def split_last(pairs):
    return pairs[:-1], pairs[-1]


def test_initial_weights_spread_as_torchvisions(torchvision):
    config = dataclasses.replace(SMALL, channels=64)
    reference = [weight.std() for weight, _ in numpy_pairs(torchvision_head(32, config))]
    head = build(config, 32)
    kernels = [head.conv1.conv.kernel, head.conv2.conv.kernel, head.deconv.kernel]
    np.testing.assert_allclose([np.std(kernel[...]) for kernel in kernels], reference, rtol=0.05)
    assert not any(bias[...].any() for bias in (head.conv1.conv.bias, head.conv2.conv.bias, head.deconv.bias))


def test_deconv_is_xlas_transposed_convolution():
    layer = Deconv4x4(3, 4, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.arange(4.0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 3))
    flipped = layer.kernel[...][::-1, ::-1]
    expected = jax.lax.conv_transpose(x, flipped, (2, 2), "SAME") + jnp.arange(4.0)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_float32_whatever_the_networks_are():
    head = build(SMALL, 4, jnp.bfloat16)
    logits = jax.eval_shape(lambda x: head(x), jnp.ones((1, 2, 14, 14, 4), jnp.bfloat16))
    assert logits.shape == (1, 2, 5, 56, 56)
    assert logits.dtype == jnp.float32


def bilinear_matrix(cells):
    """Twofold upsampling of an axis, half-pixel centres, the outer cells repeated."""
    at = np.clip((np.arange(2 * cells) + 0.5) / 2 - 0.5, 0, cells - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)


@pytest.fixture(scope="module")
def golden(shared):
    """Tensors of the golden keypoint model, its head, and how it pools."""
    tensors = read_tensors(shared / "golden" / "detectron2" / "keypoint.safetensors")
    prefix = "weights/roi_heads.keypoint_head"
    names = [f"{prefix}.conv_fcn{i + 1}" for i in range(8)] + [f"{prefix}.score_lowres"]
    layers = [(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names]
    return tensors, load(build(KeypointHeadConfig(channels=32), 32), *split_last(layers))


def pooled(tensors, image, rois):
    levels = ("p2", "p3", "p4", "p5")
    features = {name: jnp.array(tensors[f"feature_{name}"][image].transpose(1, 2, 0))[None] for name in levels}
    strides = dict(zip(levels, (4, 8, 16, 32), strict=True))
    return jax.jit(lambda rois: pool(KeypointHeadConfig().pooler, features, strides, rois[None]))(rois)


def test_head_and_decoding_agree_with_detectron2(golden):
    tensors, head = golden
    boxes = jnp.array(tensors["net_boxes_0"][:8])
    roi_features = tensors["keypoint_pooler_first"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pooled(tensors, 0, boxes)[0], roi_features, atol=1e-4 * np.abs(roi_features).max())
    logits = jax.jit(lambda x: head(x))(jnp.array(roi_features)[None])[0]
    up = bilinear_matrix(28)
    expected = up @ tensors["keypoint_lowres"] @ up.T
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

    decoded = np.asarray(jax.jit(decode_keypoints)(logits, boxes))
    (height, width), (original_height, original_width) = tensors["image_sizes"][0], tensors["original_size_0"]
    scale = [original_width / width, original_height / height, 1]
    np.testing.assert_allclose(decoded * scale, tensors["det_keypoints_0"][:8], rtol=1e-4)


def test_loss_agrees_with_detectron2(golden, shared):
    # The golden model samples 32 RoIs of foreground at most; they stand first.
    tensors, head = golden
    expected = json.loads((shared / "golden" / "detectron2" / "keypoint.json").read_text())
    apply = jax.jit(lambda x: head(x))
    total = count = 0.0
    for image in range(2):
        rois, boxes = jnp.array(tensors[f"rois_{image}"][:32]), jnp.array(tensors[f"gt_boxes_{image}"])
        gt_index = jnp.argmax(jax.jit(pairwise_iou)(rois, boxes), axis=1)
        foreground = jnp.array(tensors[f"roi_classes_{image}"][:32] == 0)
        assert int(foreground.sum()) == expected["roi_fg"][image]
        truth = dataclasses.replace(scenes(0)[2], keypoints=jnp.array(tensors[f"gt_keypoints_{image}"]))
        logits = apply(pooled(tensors, image, rois))[0]
        drawn = sampled(rois, gt_index, foreground)
        mean = keypoint_losses(KeypointHeadConfig(), logits, drawn, truth)["loss/keypoint"]
        total, count = total + float(mean.total), count + float(mean.count)
    assert total / count == pytest.approx(expected["losses"]["loss_keypoint"], rel=1e-4)


def test_loss_and_its_gradient_agree_with_torchvision(torchvision):
    import torch
    from torchvision.models.detection.roi_heads import keypointrcnn_loss

    images = [scenes(1), scenes(2)]

    def loss(logits):
        terms = [
            keypoint_losses(SMALL, of_image, *rest)["loss/keypoint"]
            for of_image, (_, *rest) in zip(logits, images, strict=True)
        ]
        return sum(term.total for term in terms) / sum(term.count for term in terms)

    value, gradient = jax.value_and_grad(loss)([image[0] for image in images])
    kept = [np.flatnonzero(rois.foreground) for _, rois, _ in images]
    logits = [
        torch.tensor(np.array(image[0])[rows], requires_grad=True) for image, rows in zip(images, kept, strict=True)
    ]
    expected = keypointrcnn_loss(
        torch.cat(logits),
        [torch.tensor(np.array(image[1].boxes)[rows]) for image, rows in zip(images, kept, strict=True)],
        [torch.tensor(np.array(image[2].keypoints)) for image in images],
        [torch.tensor(np.array(image[1].gt_index)[rows]) for image, rows in zip(images, kept, strict=True)],
    )
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    for of_image, of_torch, rows in zip(gradient, logits, kept, strict=True):
        np.testing.assert_allclose(of_image[rows], of_torch.grad.numpy(), rtol=1e-5, atol=1e-8)
        assert not np.delete(of_image, rows, axis=0).any()


def test_padding_changes_nothing_and_gives_no_nan():
    logits, rois, truth = scenes(3)

    def with_rows(tree, more):
        return jax.tree.map(lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)), tree)

    def loss(logits, boxes):
        padded = with_rows((logits, dataclasses.replace(rois, boxes=boxes)), 4)
        return keypoint_losses(SMALL, *padded, with_rows(truth, 2))

    plain, padded = keypoint_losses(SMALL, logits, rois, truth), loss(logits, rois.boxes)
    assert plain.keys() == padded.keys()
    for name in plain:
        assert float(plain[name].count) > 0
        np.testing.assert_allclose(padded[name].value, plain[name].value, rtol=1e-6)
    gradients = jax.grad(lambda *args: loss(*args)["loss/keypoint"].value, argnums=(0, 1))
    # RoIs without area also where foreground says that they count.
    for gradient in (*gradients(logits, rois.boxes), *gradients(logits, 0 * rois.boxes)):
        assert np.isfinite(gradient).all()


def test_without_a_visible_keypoint_the_loss_is_zero():
    logits, rois, truth = scenes(4)
    hidden = dataclasses.replace(truth, keypoints=truth.keypoints.at[..., 2].set(0))
    background = dataclasses.replace(rois, foreground=rois.foreground & False)

    def loss(logits, rois, truth):
        return keypoint_losses(SMALL, logits, rois, truth)["loss/keypoint"].value

    for case in ((rois, hidden), (background, truth)):
        value, gradient = jax.value_and_grad(loss)(logits, *case)
        assert float(value) == 0
        assert not gradient.any()


def test_untrained_and_perfect_logits():
    _, rois, truth = scenes(5)
    flat = keypoint_losses(SMALL, jnp.zeros((9, 5, 8, 8)), rois, truth)
    assert float(flat["loss/keypoint"].value) == pytest.approx(math.log(64), rel=1e-6)
    start, end = rois.boxes[:, None, :2], rois.boxes[:, None, 2:]
    points = truth.keypoints[rois.gt_index][..., :2]
    column, row = jnp.moveaxis(jnp.floor((points - start) / (end - start) * 8), -1, 0)
    cell = jnp.arange(8)
    right = (row[..., None, None] == cell[:, None]) & (column[..., None, None] == cell)
    perfect = keypoint_losses(SMALL, 50.0 * right, rois, truth)
    assert float(perfect["loss/keypoint"].value) < 1e-6
    assert float(perfect["keypoint/accuracy"].value) == 1


def test_no_gradient_scatters():
    graph, params = nnx.split(build(SMALL, 4))

    def loss(params, roi_features):
        logits = nnx.merge(graph, params)(roi_features)[0]
        _, *rest = scenes(6)
        return keypoint_losses(SMALL, logits, *rest)["loss/keypoint"].value

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, jnp.ones((1, 9, 14, 14, 4)))
    assert "scatter" not in str(program)


def test_ground_truth_without_these_keypoints_is_the_users_mistake():
    logits, *rest, truth = scenes(7)
    for keypoints in (None, truth.keypoints[:, :4]):
        with pytest.raises(UserError, match="num_keypoints is 5"):
            keypoint_losses(SMALL, logits, *rest, dataclasses.replace(truth, keypoints=keypoints))
