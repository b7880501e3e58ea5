"""The second stage for boxes: RoIs drawn from proposals, box heads in a row, and the boxes that they find.

One box head is Fast R-CNN's, several are a cascade. Shape letters: `B` images, `P` proposals, `R` sampled RoIs,
`K1` classes and background, `Kd` sets of deltas.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mask_rcnn_jax.models.context import Context, Keys, Terms, priorities
from mask_rcnn_jax.models.heads import box as box_head
from mask_rcnn_jax.models.heads import cascade
from mask_rcnn_jax.models.heads.box import BoxHead, BoxHeadConfig
from mask_rcnn_jax.models.heads.classification import class_scores, draw_classes, hinge_candidates
from mask_rcnn_jax.models.layers import call
from mask_rcnn_jax.models.pooler import roi_levels
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, Proposals, SampledRoIs

_ROIS, _CLASSES = 1, 2  # the samplers of RoIs and classes among those that share an image's key


@dataclass(frozen=True)
class BoxStages:
    """The box heads of a model in a row, with their settings."""

    configs: Sequence[BoxHeadConfig]
    heads: Sequence[BoxHead]
    num_classes: int


def sample_rois(stages: BoxStages, proposals: Proposals, truth: GroundTruth, keys: Keys) -> SampledRoIs:
    """Draw the RoIs of each image on which the first box head and the other heads are trained, and the classes that
    count in it.
    """
    candidates = proposals.valid.shape[1] + truth.valid.shape[1]
    priority = priorities(keys, _ROIS, (len(truth.valid), candidates))
    draw = functools.partial(box_head.sample_rois, stages.configs[0], stages.num_classes)
    rois = jax.lax.stop_gradient(jax.vmap(draw)(proposals, truth, priority))
    first = stages.configs[0]
    federated = first.federated
    if first.class_loss == "hinge":
        candidates = functools.partial(hinge_candidates, first.hinge, stages.num_classes)
        return replace(rois, counted_classes=jax.lax.stop_gradient(jax.vmap(candidates)(rois, truth)))
    if federated is None:
        return rois
    race = priorities(keys, _CLASSES, (len(truth.valid), stages.num_classes))
    race = race if keys is None else jnp.log(race)
    counted = jax.vmap(functools.partial(draw_classes, federated))(truth, race)
    return replace(rois, counted_classes=jnp.broadcast_to(counted[:, None], (*rois.valid.shape, stages.num_classes)))


def box_terms(
    stages: BoxStages,
    context: Context,
    roi_features: Float[Array, "B R _ _ _"],
    rois: SampledRoIs,
    truth: GroundTruth,
) -> tuple[Terms, Float[Array, "B R 4"]]:
    """Losses of the first head on `rois` and their features, and of each other one on the boxes of the one before.

    Also the boxes that the last head makes of its RoIs.
    """
    matched = _matched_rois(stages, context, rois, truth)
    terms: Terms = {}
    predicted = rois.boxes
    for number, (config, head) in enumerate(zip(stages.configs, stages.heads, strict=True), 1):
        several = len(stages.heads) > 1
        shared = cascade.scale_gradient(roi_features, 1 / len(stages.heads)) if several else roi_features
        class_logits, deltas = call(head, shared, rois.valid)
        suffix = f"_stage{number}" if number > 1 else ""
        class_logits = context.observe(f"class logits{suffix}", class_logits)
        deltas = context.observe(f"box deltas{suffix}", deltas)
        losses = jax.vmap(functools.partial(box_head.box_losses, config))(class_logits, deltas, rois, truth)
        terms |= {name + suffix: term for name, term in losses.items()}
        predicted = jax.vmap(functools.partial(box_head.predicted_boxes, config))(deltas, rois)
        if number < len(stages.heads):
            boxes = jax.vmap(functools.partial(cascade.refine, config))(rois.boxes, deltas, context.image_sizes)
            relabel = functools.partial(cascade.relabel, stages.configs[number], stages.num_classes)
            rois = replace(jax.vmap(relabel)(boxes, rois.valid, truth), counted_classes=rois.counted_classes)
            roi_features = context.pool(config.pooler, rois.boxes)
    return terms | matched, predicted


def detect_boxes(stages: BoxStages, context: Context, proposals: Proposals) -> PaddedDetections:
    """Find boxes in proposals. In a cascade the last head's boxes have the mean of all heads' scores."""

    def classify(config: BoxHeadConfig, head: BoxHead) -> tuple[Float[Array, "B P K1"], Float[Array, "B P Kd 4"]]:
        class_logits, deltas = head(context.pool(config.pooler, proposals.boxes), proposals.valid)
        return class_scores(config.class_loss, class_logits), deltas

    *earlier, last = zip(stages.configs, stages.heads, strict=True)
    scores = []
    for config, head in earlier:
        stage_scores, deltas = classify(config, head)
        scores.append(stage_scores)
        boxes = jax.vmap(functools.partial(cascade.refine, config))(proposals.boxes, deltas, context.image_sizes)
        proposals = replace(proposals, boxes=boxes)
    last_scores, deltas = classify(*last)
    mean = sum(scores, start=last_scores) / len(stages.heads)
    of_image = functools.partial(box_head.detect_boxes, last[0])
    return jax.vmap(of_image)(mean, deltas, proposals, context.image_sizes)


def _matched_rois(stages: BoxStages, context: Context, rois: SampledRoIs, truth: GroundTruth) -> Terms:
    """Count the sampled RoIs by IoU, and the foreground by level."""
    pooler = stages.configs[0].pooler
    levels = roi_levels(pooler, context.strides, rois.boxes)
    of_image = functools.partial(box_head.matched_rois, level_names=pooler.features)
    return jax.lax.stop_gradient(jax.vmap(of_image)(rois, truth, levels))
