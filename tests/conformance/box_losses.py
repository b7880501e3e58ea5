"""Rows of the losses of boxes: Detectron2's recorded ones, through decoding and of boxes alone, and torchvision's.

Differences of losses are relative to the reference; those of gradients to their largest entry.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mask_rcnn_jax.models import RPNConfig
from mask_rcnn_jax.models.box_regression import BoxLoss, box_regression_loss, overlap_loss
from tests.conformance.rows import Row, relative

DETECTRON2 = "detectron2 box losses"
TORCHVISION = "torchvision box losses, float64"
KINDS: tuple[BoxLoss, ...] = ("giou", "diou", "ciou")
REFERENCES = {
    "giou": "generalized_box_iou_loss",
    "diou": "distance_box_iou_loss",
    "ciou": "complete_box_iou_loss",
}
EDGES = [  # pairs of which each has an area
    ([2, 3, 9, 12], [2, 3, 9, 12]),  # identical
    ([2, 3, 9, 12], [4, 5, 6, 7]),  # inside
    ([2, 3, 9, 12], [9, 3, 15, 12]),  # they touch
    ([0, 0, 4, 4], [4, 4, 8, 8]),  # at a corner
    ([0, 0, 5, 5], [40, 70, 50, 95]),  # apart
    ([0, 0, 1000, 2], [0, 0, 2, 1000]),
    ([0, 0, 0.01, 0.02], [0, 0, 1300, 800]),
]


def detectron2_rows(shared: Path) -> Iterator[Row]:
    """Of 24 boxes, of which two share corners with their ground truth: their gradients are left out."""
    recorded = json.loads((shared / "golden" / "detectron2" / "giou.json").read_text())
    arrays = {name: np.array(recorded[name], np.float32) for name in ("anchors", "gt_boxes", "deltas", "pred_boxes")}
    smooth = np.setdiff1d(np.arange(len(arrays["anchors"])), recorded["rows_at_a_kink"])
    counted = jnp.ones(len(arrays["anchors"]), bool)
    for name, expected in recorded["from_deltas"].items():
        kind: Any = expected["type"]
        config = replace(RPNConfig(), box_weights=tuple(recorded["weights"]), box_loss=kind)
        config = replace(config, smooth_l1_beta=expected["beta"] or 0.0)

        def of_deltas(deltas: jax.Array, config: RPNConfig = config) -> jax.Array:
            return box_regression_loss(config, deltas, arrays["anchors"], arrays["gt_boxes"], counted)

        loss, gradient = jax.jit(jax.value_and_grad(of_deltas))(arrays["deltas"])
        theirs = np.array(expected["gradient"])
        yield Row(DETECTRON2, name, "losses", relative(loss[None], np.array([expected["loss"]])), 1e-5, "relative")
        yield Row(DETECTRON2, name, "gradients", relative(gradient[smooth], theirs[smooth]), 1e-4, "relative")
    for name, expected in recorded["from_boxes"].items():
        losses, gradients = values_and_gradients(name, arrays["pred_boxes"], arrays["gt_boxes"])
        theirs = np.array(expected["gradient"])
        stage = f"{name}, of boxes"
        yield Row(DETECTRON2, stage, "losses", relative(losses, np.array(expected["loss"])), 1e-5, "relative")
        yield Row(DETECTRON2, stage, "gradients", relative(gradients[0][smooth], theirs[smooth]), 1e-4, "relative")


def torchvision_rows() -> Iterator[Row]:
    """Of 300 drawn pairs and the edges, in float64; a gradient is compared with the largest of its box, at least 1."""
    import torch
    import torchvision

    for kind in KINDS:
        pairs = pairs_of_boxes()
        theirs = [torch.tensor(boxes, requires_grad=True) for boxes in pairs]
        expected = getattr(torchvision.ops, REFERENCES[kind])(*theirs)
        expected.sum().backward()
        with jax.enable_x64(True):
            losses, gradients = values_and_gradients(kind, *pairs)
        assert losses.dtype == np.float64
        yield Row(TORCHVISION, kind, "losses", float(abs(losses - expected.detach().numpy()).max()), 1e-12, "absolute")
        # A gradient is of the order of one over the box's side.
        differences = [
            abs(ours - tensor.grad.numpy()) / np.maximum(1, abs(tensor.grad.numpy()).max(axis=1, keepdims=True))
            for ours, tensor in zip(gradients, theirs, strict=True)
        ]
        yield Row(TORCHVISION, kind, "gradients", float(np.max(differences)), 1e-12, "relative")


def pairs_of_boxes() -> tuple[np.ndarray, np.ndarray]:
    """Many pairs, most of which overlap, and the edges, in float64."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (2, 300, 2))
    drawn = np.concatenate([corners, corners + np.exp(rng.uniform(-1, 4, (2, 300, 2)))], axis=2)
    first, second = (np.concatenate([drawn[side], np.array([pair[side] for pair in EDGES])]) for side in range(2))
    return first, second


def values_and_gradients(
    kind: BoxLoss, boxes: np.ndarray, gt_boxes: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The loss of each pair, and the gradients of their sum."""
    losses, gradients = _values_and_gradients(kind, jnp.asarray(boxes), jnp.asarray(gt_boxes))
    first, second = map(np.asarray, gradients)
    return np.asarray(losses), (first, second)


@functools.partial(jax.jit, static_argnums=0)
def _values_and_gradients(kind: BoxLoss, boxes: jax.Array, gt_boxes: jax.Array) -> tuple[jax.Array, Any]:
    losses, pull = jax.vjp(functools.partial(overlap_loss, kind), boxes, gt_boxes)
    return losses, pull(jnp.ones_like(losses))
