"""The stages of the whole, each on what the calibrated v1 model makes of an 800 x 1088 image.

Both programs get the same arrays in their own layout, ours on the device, and return when the result is there.
torchvision's backbone and RPN are timed in both memory formats.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision import ops as their_ops
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.models import Pair, pair, require
from benchmarks.scores import score_sides
from benchmarks.side_by_side import Row, Sides
from mask_rcnn_jax import models, ops
from mask_rcnn_jax.inference import encode_masks
from mask_rcnn_jax.models import rcnn
from mask_rcnn_jax.models.heads import box as box_head
from mask_rcnn_jax.models.pooler import PoolerConfig, pool
from mask_rcnn_jax.models.proposals import rpn
from mask_rcnn_jax.structures import GroundTruth, Proposals
from tests.conformance import reference
from tests.conformance.rows import Boxes, box_rows, largest_relative, masks_iou, mean_mask_row
from tests.conformance.rows import Row as Difference
from tests.conformance.stages import LEVELS, nhwc

_SLOTS = 100  # of ground truth, as the pipeline gives them; 8 are taken


@dataclass(frozen=True, eq=False)
class Made:
    """The model's outputs for the image, in both layouts."""

    models: Pair
    images: ImageList  # normalised
    features: dict[str, torch.Tensor]
    ours: dict[str, jax.Array]  # the same, NHWC
    trace: reference.Trace

    @property
    def proposals(self) -> torch.Tensor:
        return self.trace.stages["proposals"][0][0]

    @property
    def detected(self) -> dict[str, torch.Tensor]:
        return self.trace.stages["heads"][0]


@functools.lru_cache(maxsize=1)
def made(quick: bool) -> Made:
    both = pair("v1", (128, 160), 8) if quick else pair("v1", (800, 1088))
    trace = reference.trace(both.model, [both.image])
    features = trace.stages["features"]
    ours = {name: jnp.asarray(nhwc(x)) for name, x in zip(LEVELS, features.values(), strict=True)}
    return Made(both, trace.stages["input"][0], features, ours, trace)


def agree(stage: str, ours: Any, theirs: Any, bound: float = 1e-4) -> None:
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)]
    require([Difference("torchvision", stage, "results", largest_relative(pairs), bound, "relative")])


def without_gradient(function: Callable, *arguments: Any) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return function(*arguments)

    return call


# --- Backbone and RPN -------------------------------------------------------------------------------------------------


def backbone(quick: bool) -> Sides:
    given = made(quick)
    config, model = given.models.config, given.models.model
    x = jnp.asarray(nhwc(given.images.tensors))
    run = jax.jit(lambda variables, x: models.networks(config, variables).backbone(x))
    ours = functools.partial(run, given.models.variables, x)
    agree("backbone", ours().values(), [nhwc(level) for level in given.features.values()])
    theirs = {"contiguous": without_gradient(model.backbone, given.images.tensors)}
    last = given.images.tensors.contiguous(memory_format=torch.channels_last)
    theirs["channels last"] = without_gradient(given.models.formats["channels last"].backbone, last)
    return Sides(ours, theirs)


def proposals(quick: bool) -> Sides:
    given = made(quick)
    config, size = given.models.config, given.models.size
    sizes = jnp.array([size], jnp.int32)

    @jax.jit
    def run(variables: Any, features: Any) -> Any:
        model = models.networks(config, variables)
        return model.rpn.propose(rcnn.context_of(config, model, features, size, sizes), train=False)[0]

    ours = functools.partial(run, given.models.variables, given.ours)
    found, zeros = ours(), np.zeros(len(given.proposals), int)
    kept = np.asarray(found.valid[0])
    scores = np.asarray(jax.nn.sigmoid(found.logits[0]))[kept]
    expected = Boxes(given.proposals.numpy(), given.trace.stages["proposals"][1][0].numpy(), zeros)
    listed = Boxes(np.asarray(found.boxes[0])[kept], scores, np.zeros(kept.sum(), int))
    require(box_rows("torchvision", "proposals", [(listed, expected)]))
    last = {name: x.contiguous(memory_format=torch.channels_last) for name, x in given.features.items()}
    formats = {"contiguous": given.features, "channels last": last}
    models_of = given.models.formats
    return Sides(ours, {form: without_gradient(models_of[form].rpn, given.images, x) for form, x in formats.items()})


# --- RoIAlign ---------------------------------------------------------------------------------------------------------


def roi_align(kind: str, backward: bool, quick: bool) -> Sides:
    """`kind` "box": 1000 proposals, 7x7; "mask": 100 instances, 14x14; "adaptive": "box" as Detectron2 samples."""
    given = made(quick)
    boxes = given.detected["boxes"] if kind == "mask" else given.proposals
    head = given.models.config.mask_head if kind == "mask" else given.models.config.box_head
    assert head is not None
    config = replace(head.pooler, sampling_ratio=0, aligned=True) if kind == "adaptive" else head.pooler
    strides = given.models.config.backbone.out_strides
    levels = {name: given.ours[name] for name in config.features}
    weights = np.random.default_rng(0).standard_normal((len(boxes), config.output_size, config.output_size, 1))
    rois, weights = jnp.asarray(boxes.numpy())[None], jnp.asarray(weights.astype(np.float32))

    def pooled(levels: Any, rois: jax.Array) -> jax.Array:
        return pool(config, levels, strides, rois)[0]

    def both_passes(levels: Any, rois: jax.Array) -> Any:
        result, pull = jax.vjp(lambda levels: pooled(levels, rois), levels)
        return result, pull(jnp.broadcast_to(weights, result.shape))[0]

    ours = functools.partial(jax.jit(both_passes if backward else pooled), levels, rois)
    gradient = torch.from_numpy(np.asarray(weights)).permute(0, 3, 1, 2)
    inputs = {key: x.detach().clone() for key, x in list(given.features.items())[: len(config.features)]}
    select = functools.partial(their_pool, given, config, inputs, boxes)

    def their_passes() -> Any:
        for x in inputs.values():
            x.requires_grad_(True).grad = None
        result = select()
        result.backward(gradient.expand_as(result))
        return result.detach(), [x.grad for x in inputs.values()]

    if not backward:
        theirs = without_gradient(select)
        agree(f"RoIAlign {kind}", [ours()], [nhwc(theirs())])
        return Sides(ours, {"contiguous": theirs})
    result, gradients = their_passes()
    agree(f"RoIAlign {kind}", [ours()[0]], [nhwc(result)])
    agree(f"RoIAlign {kind}, gradient", ours()[1].values(), [nhwc(x) for x in gradients])
    return Sides(ours, {"contiguous": their_passes})


def their_pool(given: Made, config: PoolerConfig, features: dict, boxes: torch.Tensor) -> torch.Tensor:
    """torchvision's pooler, or with adaptive sampling Detectron2's around the same operator."""
    heads = given.models.model.roi_heads
    pooler = heads.box_roi_pool if config.output_size == 7 else heads.mask_roi_pool
    if config.sampling_ratio:
        return pooler(features, [boxes], given.images.image_sizes)
    level_of = pooler.map_levels([boxes])
    result = boxes.new_zeros(len(boxes), next(iter(features.values())).shape[1], 7, 7)
    for level, x in enumerate(features.values()):
        rows = torch.where(level_of == level)[0]
        rois = torch.cat([torch.zeros(len(rows), 1), boxes[rows]], dim=1)
        result[rows] = their_ops.roi_align(x, rois, 7, 2.0 ** -(level + 2), 0, True)
    return result


# --- Boxes ------------------------------------------------------------------------------------------------------------


def nms(count: int, quick: bool) -> Sides:
    """The best `count` boxes that the RPN decodes, before any suppression, all levels in one."""
    given = made(quick)
    model = copy.copy(given.models.model.rpn)
    model.nms_thresh, model._pre_nms_top_n = 1.0, {"testing": count}
    model._post_nms_top_n = {"testing": count}
    with torch.inference_mode():
        (boxes,), _ = model(given.images, given.features)
    scores = torch.from_numpy(np.linspace(1, 0, len(boxes), dtype=np.float32))
    run = jax.jit(lambda boxes, scores: ops.nms(boxes, scores, jnp.ones(len(boxes), bool), 0.7, len(boxes)))
    ours = functools.partial(run, jnp.asarray(boxes.numpy()), jnp.asarray(scores.numpy()))
    theirs = without_gradient(their_ops.nms, boxes, scores, 0.7)
    kept = ours()
    assert quick or len(boxes) == count, f"{len(boxes)} boxes instead of {count}"
    assert np.asarray(kept.indices)[np.asarray(kept.valid)].tolist() == theirs().tolist(), "NMS keeps other boxes"
    return Sides(ours, {"contiguous": theirs})


def truth_of(given: Made) -> tuple[GroundTruth, dict[str, torch.Tensor]]:
    """Eight objects: boxes of the instances found, one in twelve."""
    boxes, labels = (given.detected[name][::12][:8] for name in ("boxes", "labels"))
    padding = _SLOTS - len(boxes)
    truth = GroundTruth(
        boxes=jnp.pad(jnp.asarray(boxes.numpy()), ((0, padding), (0, 0))),
        classes=jnp.pad(jnp.asarray(labels.numpy().astype(np.int32) - 1), (0, padding)),
        masks=jnp.zeros((_SLOTS, 1, 1), jnp.uint8),
        valid=jnp.arange(_SLOTS) < len(boxes),
    )
    return truth, {"boxes": boxes, "labels": labels, "masks": torch.zeros(len(boxes), 1, 1)}


def all_anchors(given: Made) -> tuple[jax.Array, torch.Tensor]:
    config, model = given.models.config, given.models.model
    levels = rpn.level_anchors(config.rpn, given.ours, config.backbone.out_strides, given.models.size)
    return jnp.concatenate(levels), model.rpn.anchor_generator(given.images, list(given.features.values()))[0]


def match_anchors(quick: bool) -> Sides:
    """The IoU of every anchor with every object, and what it makes of the anchor."""
    given = made(quick)
    (truth, target), (anchors, their_anchors) = truth_of(given), all_anchors(given)

    @jax.jit
    def run(anchors: jax.Array, truth: GroundTruth) -> Any:
        return ops.match_boxes(anchors, truth.boxes, truth.valid, low_quality=True)

    ours = functools.partial(run, anchors, truth)
    theirs = without_gradient(given.models.model.rpn.assign_targets_to_anchors, [their_anchors], [target])
    agree("matching", [ours().label], [theirs()[0][0]], 0.0)
    return Sides(ours, {"contiguous": theirs})


def sample_anchors(quick: bool) -> Sides:
    """256 anchors at random, of which at most half are foreground."""
    given = made(quick)
    (_, target), (_, their_anchors) = truth_of(given), all_anchors(given)
    head = given.models.model.rpn
    labels, _ = head.assign_targets_to_anchors([their_anchors], [target])
    config = given.models.config.rpn

    @jax.jit
    def run(labels: jax.Array, key: jax.Array) -> Any:
        priority = jax.random.uniform(key, labels.shape)
        return ops.sample(labels, priority, config.samples, config.foreground_fraction)

    ours = functools.partial(run, jnp.asarray(labels[0].numpy().astype(np.int32)), jax.random.key(0))
    theirs = without_gradient(head.fg_bg_sampler, labels)
    drawn, (foreground, background) = ours(), theirs()
    counts = [int(drawn.foreground.sum()), int(drawn.valid.sum())]
    expected = [int(foreground[0].sum()), int(foreground[0].sum() + background[0].sum())]
    assert counts == expected, f"{counts} foreground anchors and all, theirs {expected}"
    return Sides(ours, {"contiguous": theirs})


def sample_rois(quick: bool) -> Sides:
    """Proposals and objects matched, and 512 of them drawn at random."""
    given = made(quick)
    (truth, target), config = truth_of(given), given.models.config
    boxes = jnp.asarray(given.proposals.numpy())
    candidates = Proposals(boxes, jnp.zeros(len(boxes)), jnp.ones(len(boxes), bool))

    @jax.jit
    def run(candidates: Proposals, truth: GroundTruth, key: jax.Array) -> Any:
        priority = jax.random.uniform(key, (len(boxes) + _SLOTS,))
        return box_head.sample_rois(config.box_head, config.num_classes, candidates, truth, priority)

    ours = functools.partial(run, candidates, truth, jax.random.key(0))
    select = given.models.model.roi_heads.select_training_samples
    theirs = without_gradient(lambda: select([given.proposals], [target]))
    count, expected = int(ours().foreground.sum()), int((theirs()[2][0] > 0).sum())
    assert count == expected, f"{count} foreground RoIs, theirs {expected}"
    return Sides(ours, {"contiguous": theirs})


# --- Masks and scores -------------------------------------------------------------------------------------------------


def paste(quick: bool) -> Sides:
    """From 100 masks of 28x28 in their boxes to RLEs of the image."""
    given = made(quick)
    found, size = given.detected, given.models.size

    def theirs() -> list[Any]:
        pasted = paste_masks_in_image(found["masks"], found["boxes"], size)
        bitmaps = (pasted[:, 0] > 0.5).numpy()
        return [coco_mask.encode(np.array(bitmap[:, :, np.newaxis], np.uint8, order="F"))[0] for bitmap in bitmaps]

    ours = functools.partial(encode_masks, found["boxes"].numpy(), found["masks"][:, 0].numpy(), size, "torchvision")
    bitmaps = [np.stack([coco_mask.decode(rle) for rle in rles]) for rles in (ours(), theirs())]
    require([mean_mask_row("torchvision", "paste", masks_iou(*bitmaps))])
    return Sides(ours, {"contiguous": without_gradient(theirs)})


ROWS = [
    Row("backbone and FPN", backbone),
    Row("RPN and proposals", proposals),
    *(
        Row(f"RoIAlign {work}, {'forward and backward' if backward else 'forward'}", build, target)
        for kind, work, target in (("box", "1000x7x7", 0.6), ("mask", "100x14x14", None))
        for backward in (False, True)
        for build in [functools.partial(roi_align, kind, backward)]
    ),
    Row("RoIAlign 1000x7x7 adaptive, forward", functools.partial(roi_align, "adaptive", False), 0.3),
    Row("NMS, 1000 boxes", functools.partial(nms, 1000)),
    Row("NMS, 4000 boxes", functools.partial(nms, 4000), 1.0),
    Row("matching of anchors", match_anchors, 1.0),
    Row("sampling of anchors", sample_anchors, 1.0),
    Row("matching and sampling of RoIs", sample_rois, 1.0),
    Row("mask paste and RLE, 100 masks", paste, 0.5),
    Row("COCO evaluation, 100 images", score_sides),
]
