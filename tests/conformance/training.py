"""Losses and gradients of torchvision's detectors beside this project's, in float32 and float64.

Both programs get the same resized images, ground truth and proposals, and both samplers take the candidates of the
lowest indices: what differs is arithmetic alone. (A proposal more or less, where an overlap lies within rounding of the
threshold, would move every index after it; proposals are compared by themselves.)
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import PartitionSpec as P
from torch import nn
from torchvision.models.detection.image_list import ImageList

from mask_rcnn_jax.models import MaskRCNNConfig, Variables, loss_terms
from mask_rcnn_jax.models.proposals import rpn
from mask_rcnn_jax.sharding import DATA_AXIS, data_mesh
from mask_rcnn_jax.structures import Batch, GroundTruth, Proposals
from tests.conformance.reference import lowest_indices, tensors
from tests.conformance.rows import Row, relative_norms, relative_values
from tests.conformance.sources import SOURCES, case, imported, leaves, target

LOSSES = {
    "loss_objectness": "loss/rpn_objectness",
    "loss_rpn_box_reg": "loss/rpn_box",
    "loss_classifier": "loss/box_class",
    "loss_box_reg": "loss/box",
    "loss_mask": "loss/mask",
    "loss_keypoint": "loss/keypoint",
}


# Of a reference's gradients between float32 and float64: more does not count as rounding.
LARGEST_OWN_DIFFERENCE = {"v1": 2e-3, "v2": 3.5e-3}


@dataclass(frozen=True)
class Pass:
    """What one pass gives: losses by name, and the gradient of their sum by parameter, both in this project's names."""

    losses: dict[str, float]
    gradients: dict[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """What both programs start from: the reference's, in float32."""

    images: torch.Tensor  # [B, 3, H, W], normalised and padded
    sizes: list[tuple[int, int]]
    targets: list[dict[str, torch.Tensor]]  # resized pixels
    proposals: list[torch.Tensor]


def rows(name: str) -> list[Row]:
    return [row for dtype in SOURCES[name].trained for row in rows_in(name, dtype)]


def rows_in(name: str, dtype: str) -> list[Row]:
    return float32_rows(name) if dtype == "float32" else float64_rows(name)


def float32_rows(name: str) -> list[Row]:
    """Losses and gradients in float32; the reference's own difference to float64 is the measure of the gradients."""
    ours, reference = ours_of(name, "float32"), reference_of(name, "float32")
    differences = gradient_differences(name, ours, reference)
    bound = 3 * min(own_difference(name), LARGEST_OWN_DIFFERENCE["v2" if " v2" in name else "v1"])
    return [
        Row(name, "training, float32", "losses", relative_values(ours.losses, reference.losses), 1e-4, "relative"),
        Row(name, "training, float32", "gradients, median", float(np.median(differences)), 1e-3, "of the norm"),
        Row(name, "training, float32", "gradients, worst", float(np.max(differences)), bound, "of the norm"),
        _vanishing_row(name, "training, float32", ours),
        _trained_row(name),
    ]


def float64_rows(name: str) -> list[Row]:
    """Losses and gradients with both programs in float64."""
    ours, reference = ours_of(name, "float64"), reference_of(name, "float64")
    worst = float(np.max(gradient_differences(name, ours, reference)))
    return [
        Row(name, "training, float64", "losses", relative_values(ours.losses, reference.losses), 1e-6, "relative"),
        Row(name, "training, float64", "gradients, worst", worst, 1e-6, "of the norm"),
        _vanishing_row(name, "training, float64", ours),
    ]


def own_difference(name: str) -> float:
    """The worst difference of a gradient between the reference in float32 and in float64.

    It is mostly that of activations near 0 which rounding moves to the other side. Which ones depends on the order of
    sums, so it is the largest of the reference's two memory formats, of which this project has the second, and of its
    convolutions without oneDNN, whose order depends on the processor: on one it was a fifth of that without.
    """
    exact = reference_of(name, "float64")
    forms = [reference_of(name, "float32")]
    if case(name).config.keypoint_head is None:  # torchvision's loss of keypoints fails with channels last
        forms.append(reference_of(name, "float32", torch.channels_last))
    with without_onednn():
        forms.append(reference_of.__wrapped__(name, "float32"))
    return float(max(np.max(gradient_differences(name, form, exact)) for form in forms))


@contextmanager
def without_onednn() -> Iterator[None]:
    """Compute convolutions by PyTorch's own code."""
    (enabled, *_) = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)


def gradient_differences(name: str, ours: Pass, reference: Pass) -> list[float]:
    """Relative to the norm, of each parameter; those that vanish have no norm to be relative to."""
    norms, skipped = relative_norms(ours.gradients, reference.gradients), vanishing(name)
    return [difference for parameter, difference in norms.items() if parameter not in skipped]


@functools.lru_cache(maxsize=2)
def vanishing(name: str) -> frozenset[str]:
    """Parameters whose gradient is 0 but for rounding: what raises a whole heatmap alike, and levels without a RoI."""
    norms = {parameter: np.linalg.norm(x) for parameter, x in reference_of(name, "float64").gradients.items()}
    return frozenset(parameter for parameter, norm in norms.items() if norm < 1e-12 * max(norms.values()))


def _vanishing_row(name: str, stage: str, ours: Pass) -> Row:
    largest = max(np.linalg.norm(gradient) for gradient in ours.gradients.values())
    found = [np.linalg.norm(ours.gradients[parameter]) for parameter in vanishing(name)]
    share = float(np.max(found, initial=0.0) / largest)
    return Row(name, stage, "gradients that vanish", share, 1e-6, "of the largest norm")


def _trained_row(name: str) -> Row:
    """Whether both programs train the same parameters: each is marked in the reference, and the mark imported."""
    model = copy.deepcopy(case(name).model)
    trained = {parameter for parameter, tensor in model.named_parameters() if tensor.requires_grad}
    for parameter, tensor in model.state_dict().items():
        tensor.fill_(parameter in trained)
    marks = imported(case(name).config, model)
    wrong = [mark for mark in leaves(marks.params).values() if not mark.all()]
    wrong += [mark for mark in leaves(marks.buffers).values() if mark.any()]
    return Row(name, "training, float32", "parameters that one program alone trains", len(wrong), 0, "tensors")


@functools.lru_cache(maxsize=2)
def inputs_of(name: str) -> Inputs:
    """The source's images and annotations as the reference resizes them, and its proposals in training."""
    source = case(name)
    model = copy.deepcopy(source.model).train()
    targets = [target(record, source.config.num_classes) for record in source.records]
    images, targets = model.transform(tensors(source.images), targets)
    with torch.no_grad():
        proposals, _ = model.rpn(images, model.backbone(images.tensors), targets)
    return Inputs(images.tensors, images.image_sizes, targets, proposals)


@functools.lru_cache(maxsize=3)
def reference_of(name: str, dtype: str, memory_format: torch.memory_format = torch.contiguous_format) -> Pass:
    """The reference's losses and gradients; batch norms take the batch's statistics."""
    source, inputs, torch_type = case(name), inputs_of(name), getattr(torch, dtype)
    model = copy.deepcopy(source.model).to(torch_type).to(memory_format=memory_format).train()
    proposals = [boxes.to(torch_type) for boxes in inputs.proposals]
    given = mock.patch.object(model.rpn, "filter_proposals", return_value=(proposals, None))
    with lowest_indices(), given:
        losses = reference_losses(model, inputs, torch_type, memory_format)
        sum(losses.values()).backward()
    # The gradients take the way of the weights: what torchvision's parameters are called is said in one place.
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    with jax.enable_x64(dtype == "float64"):
        gradients = leaves(imported(replace(source.config, dtype=dtype), model).params)
    return Pass({LOSSES[loss]: value.item() for loss, value in losses.items()}, gradients)


def reference_losses(
    model: nn.Module,
    inputs: Inputs,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> dict[str, torch.Tensor]:
    """The losses, by torchvision's names, of a model that computes in `dtype`."""
    images = ImageList(inputs.images.to(dtype, memory_format=memory_format), inputs.sizes)
    targets = [instances | {"boxes": instances["boxes"].to(dtype)} for instances in inputs.targets]
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def in_dtype(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # The RPN's labels are float32, and would make its loss one as well.
        return cross_entropy(logits, labels.to(logits.dtype))

    with mock.patch.object(torch.nn.functional, cross_entropy.__name__, in_dtype):
        features = model.backbone(images.tensors)
        proposals, losses = model.rpn(images, features, targets)
        return losses | model.roi_heads(features, proposals, images.image_sizes, targets)[1]


@functools.lru_cache(maxsize=2)
def ours_of(name: str, dtype: str) -> Pass:
    source, inputs = case(name), inputs_of(name)
    with jax.enable_x64(dtype == "float64"):
        config = replace(source.config, dtype=dtype)
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), source.variables)
        batch = training_batch(config, inputs)
        mesh = data_mesh(jax.devices()[:1])

        def losses_of(params, batch):
            terms, _ = loss_terms(config, Variables(params, variables.buffers), batch, None)
            losses = {key: term.value for key, term in jax.lax.psum(terms, DATA_AXIS).items() if key in LOSSES.values()}
            return sum(losses.values()), losses

        # As in `training.step`: batch norm looks for the axis, and sums of the loss meet inside the derivative.
        step = jax.shard_map(jax.grad(losses_of, has_aux=True), mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=P())
        with fixed_proposals(inputs):
            gradients, losses = jax.jit(step)(variables.params, batch)
        return Pass({key: float(value) for key, value in losses.items()}, leaves(gradients))


def training_batch(config: MaskRCNNConfig, inputs: Inputs, slots: int | None = None) -> Batch:
    """The inputs as `loss_terms` takes them: images before normalisation, masks as full bitmaps, in `slots` slots.

    Coordinates have the configuration's type, so that all is computed in it.
    """
    count, _, height, width = inputs.images.shape
    slots = slots or max(len(instances["boxes"]) for instances in inputs.targets)
    images = inputs.images.double().numpy().transpose(0, 2, 3, 1) * config.pixel_std + config.pixel_mean
    boxes, classes = np.zeros((count, slots, 4), config.dtype), np.zeros((count, slots), np.int32)
    masks, valid = np.zeros((count, slots, height, width), np.uint8), np.zeros((count, slots), bool)
    keypoints = None
    if config.keypoint_head is not None:
        keypoints = np.zeros((count, slots, config.keypoint_head.num_keypoints, 3), config.dtype)
    for row, instances in enumerate(inputs.targets):
        number = len(instances["boxes"])
        if keypoints is not None:
            keypoints[row, :number] = instances["keypoints"].numpy()
        boxes[row, :number], classes[row, :number] = instances["boxes"].numpy(), instances["labels"].numpy() - 1
        valid[row, :number] = True
        # Beyond the image torchvision samples the last row and column.
        beyond = [(0, 0), (0, height - inputs.sizes[row][0]), (0, width - inputs.sizes[row][1])]
        masks[row, :number] = np.pad(255 * instances["masks"].numpy(), beyond, mode="edge")
    regions = np.broadcast_to(np.array([0, 0, width, height], config.dtype), boxes.shape)
    truth = GroundTruth(boxes, classes, masks, valid, keypoints, regions)
    return Batch(images.astype(config.dtype), np.array(inputs.sizes, np.int32), truth, np.arange(count, dtype=np.int32))


def fixed_proposals(inputs: Inputs):
    """Makes this project's RPN propose what the reference's did; images are told apart by their sizes."""
    sizes, slots = np.array(inputs.sizes), max(len(boxes) for boxes in inputs.proposals)
    assert len(np.unique(sizes, axis=0)) == len(sizes), "the images must have different sizes"
    boxes = np.stack([np.pad(boxes.numpy(), ((0, slots - len(boxes)), (0, 0))) for boxes in inputs.proposals])
    valid = np.stack([np.arange(slots) < len(boxes) for boxes in inputs.proposals])

    def propose(config, anchors, logits, deltas, image_size, **limits):
        row = jnp.argmax((sizes == image_size).all(axis=1))
        logits = jnp.zeros(slots, logits[0].dtype)
        return Proposals(jnp.asarray(boxes, logits.dtype)[row], logits, jnp.asarray(valid)[row])

    return mock.patch.object(rpn, "propose", propose)
