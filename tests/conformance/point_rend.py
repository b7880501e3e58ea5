"""Rows of PointRend's mask head beside Detectron2's recorded outputs. A stage is given the reference's input."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax import models
from mask_rcnn_jax.models import PointRendConfig, Variables
from mask_rcnn_jax.models.context import Context
from mask_rcnn_jax.models.heads import box as box_head
from mask_rcnn_jax.models.heads import point_rend
from mask_rcnn_jax.models.heads.point_rend import PointRendHead
from mask_rcnn_jax.models.rcnn import context_of
from mask_rcnn_jax.ops.pooling import points as point_ops
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs
from tests.conformance.golden import IMAGES, Golden, nhwc
from tests.conformance.rows import Row, relative

_BOUND = 1e-4
_uncertain_cells = jax.jit(point_ops.uncertain_cells, static_argnums=1)
_mask_labels = jax.jit(point_ops.mask_labels)
_match_rois = jax.jit(box_head.match_rois, static_argnums=0)


def rows(golden: Golden) -> Iterator[Row]:
    """The coarse head, the subdivision step by step, and the boxes and points of training."""
    row = functools.partial(Row, golden.name)
    features = {name: level[:1] for name, level in golden.features.items()}
    boxes, classes = golden["net_boxes_0"], golden["det_classes_0"].astype(np.int32)
    expected = golden["coarse_pooler_first"]
    pooled = _run(golden, PointRendHead.pooled, features, boxes[: len(expected)])
    difference = relative(pooled[0], nhwc(expected))
    yield row("points, coarse head", "features", difference, _bound(golden, "coarse_pooler_first"), "relative")
    expected = golden["coarse_mask"]
    valid = np.ones((1, len(expected)), bool)
    coarse = _run(golden, PointRendHead.coarse, features, boxes[: len(expected)], valid)
    difference = relative(coarse[0], expected)
    yield row("coarse head", "logits of every class", difference, _bound(golden, "coarse_mask"), "relative")
    yield from _subdivision_rows(golden, features, boxes, classes)
    yield from _training_rows(golden)


def masks(golden: Golden, features: Mapping[str, Any], boxes: np.ndarray, classes: np.ndarray) -> jax.Array:
    """Probabilities inside the boxes of one image."""

    def answer(head: PointRendHead, context: Context, boxes: jax.Array, classes: jax.Array) -> jax.Array:
        valid = jnp.ones(classes.shape, bool)
        return head.answer(context, PaddedDetections(boxes, jnp.zeros(classes.shape), classes, None, valid))

    return _run(golden, answer, features, boxes, classes[None])[0]


@contextlib.contextmanager
def recorded_points(golden: Golden) -> Iterator[None]:
    """Train on the points that the reference drew; a model without them is left alone."""
    if "train_points" not in golden.tensors:
        yield
        return
    slots = golden.config.box_head.foreground_slots
    per_image = np.split(golden["train_points"], [len(golden["train_mask_boxes_0"])])
    padded = np.stack([np.pad(points, ((0, slots - len(points)), (0, 0), (0, 0))) for points in per_image])
    with mock.patch.object(point_rend, "train_points", return_value=padded):
        yield


def _subdivision_rows(
    golden: Golden, features: Mapping[str, Any], boxes: np.ndarray, classes: np.ndarray
) -> Iterator[Row]:
    """The chosen points as sets, and the logits at the points that the reference chose, which then take their place."""
    config, number = golden.config.mask_head, len(golden["subdivision_points_1"])
    assert isinstance(config, PointRendConfig)
    boxes, classes, images = boxes[:number], classes[:number], np.zeros(number, np.int32)
    coarse = _run(golden, PointRendHead.coarse, features, boxes, np.ones((1, number), bool))[0]

    def logits_at(points: jax.Array, step: int) -> tuple[jax.Array, Row]:
        values = _run(golden, PointRendHead._logits_at, features, coarse, boxes, classes, images, points, merged=True)
        key = f"subdivision_logits_{step}"
        difference = relative(values, golden[key])
        stage = f"subdivision, {config.grids[step]} x {config.grids[step]}"
        return values, Row(golden.name, stage, "logits at points", difference, _bound(golden, key), "relative")

    first, *finer = config.grids
    logits, row = logits_at(jnp.broadcast_to(point_ops.grid_points(first), (number, first**2, 2)), 0)
    yield row
    logits = logits.reshape(number, first, first)
    own = golden.json["own_difference"]["subdivision_points_in_common"]
    for step, side in enumerate(finer, 1):
        logits, expected = point_ops.doubled(logits), golden[f"subdivision_points_{step}"]
        cells = np.asarray(_uncertain_cells(logits, config.subdivision_points))
        common = np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(cells, expected, strict=True)])
        bound = max(1e-3, 1 - own[step - 1])
        stage = f"subdivision, {side} x {side}"
        yield Row(golden.name, stage, "points that one program alone chooses", float(1 - common), bound, "of all")
        values, row = logits_at(point_ops.cell_points(jnp.asarray(expected), side), step)
        yield row
        logits = point_ops.with_cells(logits, jnp.asarray(expected), values)
    expected = golden["mask_logits"]
    difference = relative(logits[: len(expected)], expected)
    yield Row(golden.name, "subdivision", "logits of the whole", difference, _bound(golden, "mask_logits"), "relative")


def _training_rows(golden: Golden) -> Iterator[Row]:
    """The boxes that the box head makes of the reference's RoIs, and the labels of its points in its own boxes."""
    config, truth = golden.config, golden.batch().ground_truth
    rois = [_foreground(golden, i, jax.tree.map(lambda x, i=i: x[i], truth)) for i in IMAGES]
    labels = np.split(golden["train_point_labels"], [len(golden["train_mask_boxes_0"])])
    points = np.split(golden["train_points"], [len(golden["train_mask_boxes_0"])])
    of_boxes, of_labels = [], []
    for i in IMAGES:
        expected = golden[f"train_mask_boxes_{i}"]
        features = {name: level[i : i + 1] for name, level in golden.features.items()}
        predicted = _predicted(config, golden.variables, features, rois[i])
        of_boxes.append(float(np.max(np.abs(predicted - expected))))
        in_image = point_ops.place_in_boxes(jnp.asarray(points[i]), jnp.asarray(expected))
        ours = _mask_labels(truth.masks[i], truth.regions[i], in_image, rois[i].gt_index)
        of_labels.append(relative(ours, labels[i]))
    yield Row(golden.name, "mask losses", "boxes", float(np.max(of_boxes)), 0.05, "px")
    yield Row(golden.name, "mask losses", "labels at points", float(np.max(of_labels)), _BOUND, "relative")


def _foreground(golden: Golden, image: int, truth: GroundTruth) -> SampledRoIs:
    """The foreground of the RoIs that the reference sampled."""
    classes = golden[f"roi_classes_{image}"]
    chosen = classes < golden.config.num_classes
    boxes = jnp.asarray(golden[f"rois_{image}"][chosen])
    every = jnp.ones(len(boxes), bool)
    matches = _match_rois(golden.config.box_head, boxes, truth)
    return SampledRoIs(boxes, matches.gt_index, jnp.asarray(classes[chosen], jnp.int32), every, every)


@functools.partial(jax.jit, static_argnums=0)
def _predicted(
    config: models.MaskRCNNConfig, variables: Variables, features: Mapping[str, jax.Array], rois: SampledRoIs
) -> jax.Array:
    model = models.networks(config, variables)
    pooled = model.roi_features(config, config.box_head.pooler, features, rois.boxes[None])
    _, deltas = model.box_head(pooled, rois.valid[None])
    return box_head.predicted_boxes(config.box_head, deltas[0], rois)


def _run(golden: Golden, method: Callable, features: Mapping[str, Any], *inputs: Any, merged: bool = False) -> Any:
    """A method of the mask head on one image's features; the first input is boxes [R, 4], unless `merged`."""
    config, padded_size = golden.config, golden["batch"].shape[2:]

    @jax.jit
    def run(variables: Variables, features: Mapping[str, jax.Array], inputs: Any) -> Any:
        model = models.networks(config, variables)
        sizes = jnp.array([padded_size], jnp.int32)
        return method(model.mask_head, context_of(config, model, features, padded_size, sizes), *inputs)

    first, *others = inputs
    return run(golden.variables, features, (jnp.asarray(first if merged else first[None]), *map(jnp.asarray, others)))


def _bound(golden: Golden, key: str) -> float:
    """The bound of other rows, or the reference's own difference between float32 and float64 where that is larger."""
    own = golden.json["own_difference"]["stages"][key]
    return max(_BOUND, own["max_abs_difference"] / own["max_abs"])
