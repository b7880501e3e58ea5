"""Rows of Detectron2: its recorded outputs beside this project's. A stage is given the reference's input."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pycocotools import mask as coco_mask

from mask_rcnn_jax import models
from mask_rcnn_jax.inference import encode_masks
from mask_rcnn_jax.models import (
    FPNConfig,
    MaskRCNNConfig,
    PointRendConfig,
    RPNConfig,
    SimplePyramidConfig,
    Variables,
)
from mask_rcnn_jax.models.heads import box as box_head
from mask_rcnn_jax.models.heads import cascade
from mask_rcnn_jax.models.pooler import RoIPoolConfig, RoIPoolerConfig, pool
from mask_rcnn_jax.models.proposals import rpn
from mask_rcnn_jax.models.rcnn import context_of, detect_from_features, normalize
from mask_rcnn_jax.ops import decode_keypoints
from mask_rcnn_jax.pretrained import convert
from mask_rcnn_jax.structures import PaddedDetections, Proposals
from tests.conformance import panoptic, point_rend, vitdet
from tests.conformance.golden import IMAGES, Golden, config, nhwc
from tests.conformance.rows import (
    Boxes,
    Row,
    box_rows,
    compare_boxes,
    largest_relative,
    mask_rows,
    relative,
    relative_values,
)


def rows(shared: Path, name: str) -> Iterator[Row]:
    """Every row of one recorded model."""
    golden = Golden(shared, name)
    for stage in stages_of(name):
        yield from STAGES[stage](golden)
    for run in runs_of(golden).values():
        yield from training_rows(golden, run)


def stages_of(name: str) -> tuple[str, ...]:
    """The stages of a recorded model that are compared."""
    absent = {"backbone_rows"} if "/" in name else set()  # a variant has the features of the model beside it
    absent |= set() if isinstance(config(name).rpn, RPNConfig) else {"rpn_rows"}
    absent |= set() if config(name).heads else {"panoptic_rows"}
    return tuple(stage for stage in STAGES if stage not in absent)


def backbone_rows(golden: Golden) -> Iterator[Row]:
    """The input; each stage of the backbone given what the reference gives it; and the backbone as a whole.

    As a whole it is held to the reference's own difference where that is larger than the bound: between its
    convolutions with and without oneDNN, on the same machine.
    """
    row = functools.partial(Row, golden.name)
    normalized = normalize(golden.config, jnp.asarray(golden.images), jnp.asarray(golden.sizes))
    yield row("input", "normalised images", relative(normalized, nhwc(golden["batch"])), 1e-6, "relative")
    if isinstance(golden.config.backbone, SimplePyramidConfig):
        yield from vitdet.rows(golden)
        return
    inside, model = golden.inside_backbone, golden.model.backbone
    resnet = model.bottom_up if isinstance(golden.config.backbone, FPNConfig) else model
    before = "stem"
    for name in resnet.stages:
        ours = _apply(getattr(resnet, name), jnp.asarray(nhwc(inside[before])))
        yield row(name, "output, given its input", relative(ours, nhwc(inside[name])), 1e-4, "relative")
        before = name
    features = _apply(model, jnp.asarray(nhwc(golden["batch"])))
    pairs = [(features[name], expected) for name, expected in golden.features.items()]
    own = largest_relative((golden.other_features[name], expected) for name, expected in golden.features.items())
    yield row("features", "every level, given the image", largest_relative(pairs), max(1e-4, own), "relative")


@nnx.jit
def _apply(module: nnx.Module, *inputs: jax.Array) -> Any:
    """With variables as arguments, as models have them: XLA computes with constants otherwise."""
    return module(*inputs)  # pyright: ignore[reportCallIssue]


def _roi_features(
    golden: Golden, pooler: RoIPoolerConfig, features: Mapping[str, jax.Array], boxes: jax.Array | np.ndarray
) -> jax.Array:
    return _pooled(golden.config, pooler, golden.variables, features, jnp.asarray(boxes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(
    config: MaskRCNNConfig,
    pooler: RoIPoolerConfig,
    variables: Variables,
    features: Mapping[str, jax.Array],
    boxes: jax.Array,
) -> jax.Array:
    return models.networks(config, variables).roi_features(config, pooler, features, boxes)


def rpn_rows(golden: Golden) -> Iterator[Row]:
    row = functools.partial(Row, golden.name)

    levels = [golden.features[name] for name in golden.config.rpn.features]
    logits, deltas = _apply(golden.model.rpn, levels)
    expected_logits, expected_deltas = golden.rpn_outputs
    yield row("RPN", "logits", largest_relative(zip(logits, expected_logits, strict=True)), 1e-4, "relative")
    yield row("RPN", "deltas", largest_relative(zip(deltas, expected_deltas, strict=True)), 1e-4, "relative")
    expected = [(boxes, golden[f"proposal_logits_{i}"]) for i, boxes in enumerate(golden.of_images("proposals"))]
    yield from _proposal_rows(golden, "proposals", expected, train=False)
    expected = [(boxes, None) for boxes in golden.of_images("train_proposals")]
    yield from _proposal_rows(golden, "proposals in training", expected, train=True)


def _proposal_rows(golden: Golden, stage: str, expected: list, *, train: bool) -> Iterator[Row]:
    settings, shape = golden.config.rpn, golden["batch"].shape[2:]
    anchors = rpn.level_anchors(settings, golden.features, golden.config.backbone.out_strides, shape)
    propose = functools.partial(rpn.propose, settings, anchors, train=train)
    logits, deltas = jax.tree.map(jnp.asarray, golden.rpn_outputs)
    found = jax.jit(jax.vmap(propose))(logits, deltas, jnp.asarray(golden.sizes))
    pairs = []
    for i, (boxes, scores) in enumerate(expected):
        kept = np.asarray(found.valid[i])
        scores = np.zeros(len(boxes)) if scores is None else scores
        ours = np.asarray(found.logits[i])[kept] if np.any(scores) else np.zeros(kept.sum())
        classes = np.zeros(kept.sum()), np.zeros(len(boxes))
        pairs.append((Boxes(np.asarray(found.boxes[i])[kept], ours, classes[0]), Boxes(boxes, scores, classes[1])))
    yield from box_rows(golden.name, stage, pairs)


def box_rows_of(golden: Golden) -> Iterator[Row]:
    """The box head of every stage, and the boxes that come of the reference's logits and deltas."""
    row, stages = functools.partial(Row, golden.name), golden.config.box_stages
    features = golden.features
    proposals, scores = golden.proposals, []
    for number, (stage, head, (logits, deltas)) in enumerate(
        zip(stages, golden.model.box_heads, golden.predictions, strict=True), 1
    ):
        name = f"box head {number}" if len(stages) > 1 else "box head"
        ours = _apply(head, _roi_features(golden, stage.pooler, features, proposals.boxes), proposals.valid)
        kept = np.asarray(proposals.valid)
        found = [np.asarray(x)[kept] for x in ours]
        yield row(name, "class logits", relative(found[0], logits[kept]), 1e-4, "relative")
        yield row(name, "deltas", relative(found[1], deltas[kept]), 1e-4, "relative")
        scores.append(jax.nn.softmax(jnp.asarray(logits), axis=-1))
        if number < len(stages):
            refine = jax.jit(jax.vmap(functools.partial(cascade.refine, stage)))
            boxes = refine(proposals.boxes, jnp.asarray(deltas), jnp.asarray(golden.sizes))
            proposals = replace(proposals, boxes=boxes)
    select = jax.jit(jax.vmap(functools.partial(box_head.detect_boxes, stages[-1])))
    found = select(sum(scores) / len(scores), jnp.asarray(deltas), proposals, jnp.asarray(golden.sizes))
    yield from box_rows(golden.name, "boxes from logits", _detection_pairs(golden, found))


def head_rows(golden: Golden) -> Iterator[Row]:
    """RoI features, masks and keypoints, given the reference's features and boxes."""
    row, config, model = functools.partial(Row, golden.name), golden.config, golden.model
    features = {name: level[:1] for name, level in golden.features.items()}
    found = golden["net_boxes_0"]
    rois = {"box": (config.box_head, golden["proposals_0"]), "mask": (config.mask_head, found)}
    rois |= {"keypoint": (config.keypoint_head, found)}
    for name, (head, boxes) in rois.items():
        key = "pooler_first" if config.res5_on_rois and name == "box" else f"{name}_pooler_first"
        if key in golden.tensors:
            expected = nhwc(golden[key])
            run = jax.jit(functools.partial(pool, head.pooler, strides=config.backbone.out_strides))
            pooled = run(features, rois=boxes[None, : len(expected)])
            method = "RoIPool" if isinstance(head.pooler, RoIPoolConfig) else "RoIAlign"
            yield row(f"{method}, {name} head", "features", relative(pooled[0], expected), 1e-4, "relative")
    if isinstance(config.mask_head, PointRendConfig):
        yield from point_rend.rows(golden)
    elif config.mask_head is not None:
        expected = golden["mask_logits"]
        x = _roi_features(golden, config.mask_head.pooler, features, found[None, : len(expected)])
        every = jnp.ones((1, len(expected)), bool)
        ours = [_apply(model.mask_head, x, jnp.full(every.shape, k), every)[0] for k in range(config.num_classes)]
        yield row("mask head", "logits of every class", relative(jnp.stack(ours, 1), expected), 1e-4, "relative")
    for i in IMAGES if config.mask_head is not None else ():
        yield from mask_rows(golden.name, f"masks of image {i}, given boxes", _mask_iou(golden, i))
    if config.keypoint_head is not None:
        lowres = nhwc(golden["keypoint_lowres"])
        heatmaps = jax.image.resize(lowres, (len(lowres), 56, 56, lowres.shape[-1]), "bilinear").transpose(0, 3, 1, 2)
        boxes = jnp.asarray(found[: len(lowres)])
        x = _roi_features(golden, config.keypoint_head.pooler, features, boxes[None])
        yield row("keypoint head", "heatmaps", relative(_apply(model.keypoint_head, x)[0], heatmaps), 1e-4, "relative")
        expected = golden["det_keypoints_0"][: len(lowres)]
        yield from _keypoint_rows(golden, "keypoints from heatmaps", decode_keypoints(heatmaps, boxes), expected)


def _mask_iou(golden: Golden, image: int) -> np.ndarray:
    """IoU of pasted masks: our mask head on the reference's features and boxes against the reference's masks."""
    config = golden.config
    features = {name: level[image : image + 1] for name, level in golden.features.items()}
    boxes, classes = golden[f"net_boxes_{image}"], golden[f"det_classes_{image}"].astype(np.int32)
    if isinstance(config.mask_head, PointRendConfig):
        masks = point_rend.masks(golden, features, boxes, classes)
    else:
        x = _roi_features(golden, config.mask_head.pooler, features, boxes[None])
        logits = _apply(golden.model.mask_head, x, jnp.asarray(classes[None]), jnp.ones((1, len(classes)), bool))
        masks = jax.nn.sigmoid(logits[0])
    height, width = (int(side) for side in golden[f"original_size_{image}"])
    ours = encode_masks(golden[f"det_boxes_{image}"], np.asarray(masks), (height, width))
    return rle_iou(ours, golden.json["masks"][image])


def _keypoint_rows(golden: Golden, stage: str, ours: jax.Array, expected: np.ndarray) -> Iterator[Row]:
    ours, scale = np.asarray(ours), golden["original_size_0"][::-1] / golden.sizes[0][::-1]
    places = np.abs(ours[..., :2] * scale - expected[..., :2])
    yield Row(golden.name, stage, "coordinates", float(np.max(places)), 0.05, "px")
    yield Row(golden.name, stage, "scores", float(np.max(np.abs(ours[..., 2] - expected[..., 2]))), 5e-4, "absolute")


def end_to_end_rows(golden: Golden) -> Iterator[Row]:
    """From images to detections in original pixels.

    Scores are held to the reference's own difference where that is larger than the bound, as its features are.
    """
    config, padded_size, sizes = golden.config, golden["batch"].shape[2:], jnp.asarray(golden.sizes)

    @jax.jit
    def rest(variables: Variables, features: Mapping[str, jax.Array], given: Proposals | None) -> PaddedDetections:
        model = models.networks(config, variables)
        context = replace(context_of(config, model, features, padded_size, sizes), proposals=given)
        return detect_from_features(config, model, context)

    # As `models.detect`, in two programs: the backbone's is another row's, the other that of the reference's features.
    features = _apply(golden.model.backbone, normalize(config, jnp.asarray(golden.images), sizes))
    found, own = rest(golden.variables, features, golden.given), 0.0
    if golden.other_features is not None:
        others = rest(golden.variables, golden.other_features, golden.given)
        own = compare_boxes(_detection_pairs(golden, others)).scores
    for row in box_rows(golden.name, "end to end", _detection_pairs(golden, found)):
        yield replace(row, bound=max(row.bound, own)) if row.quantity == "scores of matched boxes" else row
    if golden.config.heads:
        yield from panoptic.end_to_end_rows(golden, found)


def _detection_pairs(golden: Golden, found: PaddedDetections) -> list[tuple[Boxes, Boxes]]:
    """Our detections and the reference's, in original pixels."""
    pairs = []
    for i in IMAGES:
        kept = np.asarray(found.valid[i])
        scale = np.tile(golden[f"original_size_{i}"][::-1] / golden.sizes[i][::-1], 2)
        ours = (np.asarray(x[i])[kept] for x in (found.boxes, found.scores, found.classes))
        boxes, scores, classes = ours
        reference = (golden[f"det_{key}_{i}"] for key in ("boxes", "scores", "classes"))
        pairs.append((Boxes(boxes * scale, scores, classes), Boxes(*reference)))
    return pairs


STAGES = {
    function.__name__: function
    for function in (backbone_rows, rpn_rows, box_rows_of, head_rows, panoptic.panoptic_rows, end_to_end_rows)
}

LOSSES = {
    "loss_cls": "box_class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_mask_point": "mask_point",
    "loss_keypoint": "keypoint",
    "loss_rpn_cls": "rpn_objectness",
    "loss_rpn_loc": "rpn_box",
    "loss_sem_seg": "semantic",
} | {
    f"{name}_stage{i}": f"{ours}{f'_stage{i + 1}' * (i > 0)}"
    for i in range(3)
    for name, ours in (("loss_cls", "box_class"), ("loss_box_reg", "box"))
}


@dataclass(frozen=True)
class TrainingRun:
    """A training pass of the reference: what a row calls it, what was recorded, and the samples."""

    name: str
    recorded: Mapping[str, Any]
    config: MaskRCNNConfig
    rpn_scale: float = 1.0  # of the RPN's losses, which the reference divides by the usual number of samples
    largest: float = 6e-3  # bound of the largest difference of two gradients' norms


def runs_of(golden: Golden) -> dict[str, TrainingRun]:
    """The training passes by key: with the usual number of samples, and where it was recorded with all there are."""
    config = golden.config
    runs = {"": TrainingRun("training", golden.json, config)}
    if "all" in golden.json:
        anchors = sum(logits.shape[1] for logits in golden.rpn_outputs[0])
        candidates = config.rpn.post_nms_train + max(map(len, golden.of_images("gt_boxes")))
        slots = 4 * max(golden.json["all"]["roi_fg"])
        every = replace(
            config,
            rpn=replace(config.rpn, samples=2 * anchors),
            box_head=replace(config.box_head, samples=candidates, foreground_fraction=slots / candidates),
        )
        scale = every.rpn.samples / config.rpn.samples
        # More samples, more ReLUs near zero: Detectron's gradients in float32 and float64 are 1.5e-2 apart themselves.
        own = golden.json["all"]["own_difference"]["gradient_norms_relative"]["max"]
        runs["all"] = TrainingRun("training, every sample", golden.json["all"], every, scale, max(6e-3, own))
    return runs


def training_rows(golden: Golden, run: TrainingRun) -> Iterator[Row]:
    """Losses with fixed samples, and the norm of every parameter's gradient."""
    row, batch, buffers = functools.partial(Row, golden.name, run.name), golden.batch(), golden.variables.buffers

    def total(params):
        terms, _ = models.loss_terms(run.config, Variables(params, buffers), batch, None)
        losses = {name.removeprefix("loss/"): term.value for name, term in terms.items() if name.startswith("loss/")}
        for name in {"rpn_objectness", "rpn_box"} & losses.keys():
            losses[name] *= run.rpn_scale
        return sum(losses.values()), losses

    with point_rend.recorded_points(golden):
        gradients, losses = jax.jit(jax.grad(total, has_aux=True))(golden.variables.params)
    expected = {LOSSES[name]: value for name, value in run.recorded["losses"].items()}
    yield row("losses", relative_values(jax.tree.map(float, losses), expected), 1e-4, "relative")
    paths = path_of_name(golden)
    found = {
        jax.tree_util.keystr(p, simple=True, separator="/"): g
        for p, g in jax.tree_util.tree_leaves_with_path(gradients)
    }
    norms = run.recorded["gradient_norms"]
    ours = {name: float(jnp.linalg.norm(found[paths[name]])) for name in norms}
    # Where a gradient is zero but for rounding, as that of a bias before a softmax, its norm means nothing.
    floor = 1e-6 * max(norms.values())
    differences = [abs(ours[name] - norm) / max(norm, floor) for name, norm in norms.items()]
    yield row("gradient norms, median", float(np.median(differences)), 1e-3, "relative")
    yield row("gradient norms, largest", float(np.max(differences)), run.largest, "relative")
    missing = sorted(set(found) - {paths[name] for name in norms})
    yield row("parameters that only one program trains", float(len(missing)), 0, "of all")


def path_of_name(golden: Golden) -> dict[str, str]:
    """Our path of each tensor of the reference, found by converting tensors that hold their own number."""
    names = list(golden.weights)
    numbered = {name: np.full_like(golden.weights[name], number) for number, name in enumerate(names)}
    variables, _ = convert(numbered, golden.config, "detectron2", None)
    leaves = jax.tree_util.tree_leaves_with_path(variables.params)
    return {
        names[int(leaf.reshape(-1)[0])]: jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves
    }


def rle_iou(ours: list[dict], reference: list[dict]) -> np.ndarray:
    """IoU of each pair of RLEs; 1 where both are empty."""
    pairs = zip(ours, reference, strict=True)
    return np.array(
        [coco_mask.iou([a], [b], [0])[0, 0] if coco_mask.area(a) or coco_mask.area(b) else 1.0 for a, b in pairs]
    )
