"""Mask R-CNN: backbone, proposals, RoIs, heads.

The networks are written for a batch, everything between them for one image and mapped here with `jax.vmap`.
Shape letters: `B` images, `H W` padded height and width, `N` anchors, `P` proposals, `G` ground-truth slots,
`R` sampled RoIs, `D` detection slots, `M` side of a mask.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from mask_rcnn_jax.models import box_head, cascade, keypoint_head, mask_head, rpn
from mask_rcnn_jax.models.box_head import BoxHead, BoxHeadConfig, SampledRoIs
from mask_rcnn_jax.models.layers import call
from mask_rcnn_jax.models.losses import Mean
from mask_rcnn_jax.models.networks import MaskRCNN, MaskRCNNConfig, Variables, networks
from mask_rcnn_jax.models.pooler import Pool, PoolerConfig, pool, roi_levels
from mask_rcnn_jax.models.rpn import Proposals
from mask_rcnn_jax.ops.keypoints import decode_keypoints
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.structures import Batch, GroundTruth, PaddedDetections

Features = Mapping[str, Float[Array, "B _ _ _"]]
Terms = dict[str, Mean]
# Is shown what each stage made, arrays with a leading axis of images, and gives it back or something in its place.
Observe = Callable[[str, Any], Any]


def unobserved(stage: str, made: Any) -> Any:
    return made


def loss_terms(
    config: MaskRCNNConfig,
    variables: Variables,
    batch: Batch,
    keys: Key[Array, " B"] | None,
    observe: Observe = unobserved,
) -> tuple[Terms, dict[str, Any]]:
    """Losses (`loss/...`, their sum is minimised) and measures of the batch by name, and the updated buffers.

    `keys` seed the sampling of anchors and RoIs, one an image; `None` takes the candidates with the lowest indices.
    Batch norm synchronises over the mesh axis `data`, which must then exist.
    """
    model = networks(config, variables, train=True)
    truth = batch.ground_truth
    images = observe("images", normalize(config, batch.images, batch.image_sizes))
    features = observe("backbone features", model.backbone(images.astype(config.dtype)))
    anchors, logits, deltas, proposals = propose(
        config, model, features, (images.shape[1], images.shape[2]), batch.image_sizes, train=True, observe=observe
    )
    terms = _rpn_terms(config, anchors, logits, deltas, truth, keys)

    rois = _sample_rois(config, proposals, truth, keys)
    box_features = model.roi_features(config, config.box_head.pooler, features, rois.boxes)
    box_features = observe("RoI features", box_features)
    terms |= _box_terms(config, model, features, box_features, rois, batch, observe)
    terms |= _matched_rois(config, rois, truth)

    foreground = jax.tree.map(lambda x: x[:, : config.box_head.foreground_slots], rois)

    def foreground_features(pooler: PoolerConfig) -> Float[Array, "B R _ _ _"]:
        if config.res5_on_rois:  # heads share what res5 made of the box head's RoIs
            return box_features[:, : config.box_head.foreground_slots]
        return model.roi_features(config, pooler, features, foreground.boxes)

    matched = (foreground.boxes, foreground.gt_index, foreground.foreground, truth)
    if config.mask_head is not None and model.mask_head is not None:
        x = foreground_features(config.mask_head.pooler)
        mask_logits = call(model.mask_head, x, foreground.classes, foreground.foreground)
        mask_logits = observe("mask logits", mask_logits)
        terms |= jax.vmap(functools.partial(mask_head.mask_losses, config.mask_head))(mask_logits, *matched)
    if config.keypoint_head is not None and model.keypoint_head is not None:
        heatmaps = call(model.keypoint_head, foreground_features(config.keypoint_head.pooler))
        heatmaps = observe("keypoint heatmaps", heatmaps)
        terms |= jax.vmap(functools.partial(keypoint_head.keypoint_losses, config.keypoint_head))(heatmaps, *matched)
    buffers = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
    terms = {name: replace(term, total=observe(name, term.total)) for name, term in terms.items()}
    return jax.tree.map(jnp.sum, terms), buffers


def detect(
    config: MaskRCNNConfig,
    variables: Variables,
    images: Num[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    pool: Pool = pool,
) -> PaddedDetections:
    """Detections of a batch of padded images, boxes in its pixels and clipped to `image_sizes` (height, width).

    `pool` is how RoIs are pooled: a program for other machines may have its own form.
    """
    model = networks(config, variables)
    images = normalize(config, images, image_sizes)
    features = model.backbone(images.astype(config.dtype))
    return detect_from_features(config, model, features, (images.shape[1], images.shape[2]), image_sizes, pool)


def detect_from_features(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    features: Features,
    padded_size: tuple[int, int],
    image_sizes: Int[Array, "B 2"],
    pool: Pool = pool,
) -> PaddedDetections:
    """`detect` after the backbone; `padded_size` is (height, width) of the images that the features came from."""
    found = find_boxes(config, model, features, padded_size, image_sizes, pool)
    found = replace(found, masks=mask_probabilities(config, model, features, found, pool))
    heatmaps = keypoint_heatmaps(config, model, features, found, pool)
    if config.keypoint_head is not None and heatmaps is not None:
        decode = functools.partial(decode_keypoints, convention=config.keypoint_head.decode)
        keypoints = jax.vmap(decode)(heatmaps, found.boxes)
        found = replace(found, keypoints=jnp.where(found.valid[..., None, None], keypoints, 0.0))
    return found


def find_boxes(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    features: Features,
    padded_size: tuple[int, int],
    image_sizes: Int[Array, "B 2"],
    pool: Pool = pool,
) -> PaddedDetections:
    """`detect_from_features` without masks and keypoints."""
    *_, proposals = propose(config, model, features, padded_size, image_sizes, train=False)
    return _detect_boxes(config, model, features, proposals, image_sizes, pool)


def mask_probabilities(
    config: MaskRCNNConfig, model: MaskRCNN, features: Features, found: PaddedDetections, pool: Pool = pool
) -> Float[Array, "B D M M"] | None:
    """The mask of each instance inside its box, zeros in padded rows; None for a model without masks."""
    if config.mask_head is None or model.mask_head is None:
        return None
    x = model.roi_features(config, config.mask_head.pooler, features, found.boxes, pool)
    masks = jax.nn.sigmoid(model.mask_head(x, found.classes, found.valid))
    return jnp.where(found.valid[..., None, None], masks, 0.0)


def keypoint_heatmaps(
    config: MaskRCNNConfig, model: MaskRCNN, features: Features, found: PaddedDetections, pool: Pool = pool
) -> Float[Array, "B D J S S"] | None:
    """Logits of each instance's keypoints inside its box; None for a model without keypoints."""
    if config.keypoint_head is None or model.keypoint_head is None:
        return None
    return model.keypoint_head(model.roi_features(config, config.keypoint_head.pooler, features, found.boxes, pool))


@jax.named_scope("normalize")
def normalize(
    config: MaskRCNNConfig, images: Num[Array, "B H W 3"], image_sizes: Int[Array, "B 2"]
) -> Float[Array, "B H W 3"]:
    """Subtracts the mean and divides by the deviation; padding is zero afterwards."""
    order = slice(None, None, -1 if config.channel_order == "bgr" else 1)
    rows = jnp.arange(images.shape[1])[None, :, None] < image_sizes[:, 0, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :] < image_sizes[:, 1, None, None]
    inside = (rows & columns)[..., None]
    centred = jnp.where(inside, at_least_float32(images) - jnp.array(config.pixel_mean), 0.0)
    # By an array as large as the images: XLA multiplies by the reciprocal of a smaller one, which rounds twice.
    return (centred / jnp.where(inside, jnp.array(config.pixel_std), 1.0))[..., order]


def propose(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    features: Features,
    padded_size: tuple[int, int],
    image_sizes: Int[Array, "B 2"],
    *,
    train: bool,
    observe: Observe = unobserved,
) -> tuple[list[Float[Array, "_ 4"]], list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]], Proposals]:
    """Anchors, objectness logits and anchor deltas by level, and the proposals that they make."""
    names = config.rpn.features
    logits, deltas = call(model.rpn, [features[name] for name in names])
    logits = observe("RPN logits", dict(zip(names, logits, strict=True)))
    deltas = observe("RPN deltas", dict(zip(names, deltas, strict=True)))
    logits, deltas = [logits[name] for name in names], [deltas[name] for name in names]
    anchors = rpn.level_anchors(config.rpn, features, config.backbone.out_strides, padded_size)
    of_image = functools.partial(
        rpn.propose,
        config.rpn,
        anchors,
        pre_nms=config.rpn.pre_nms_train if train else config.rpn.pre_nms_test,
        post_nms=config.rpn.post_nms_train if train else config.rpn.post_nms_test,
    )
    return anchors, logits, deltas, observe("proposals", jax.vmap(of_image)(logits, deltas, image_sizes))


def _rpn_terms(
    config: MaskRCNNConfig,
    anchors: list[Float[Array, "_ 4"]],
    logits: list[Float[Array, "B _"]],
    deltas: list[Float[Array, "B _ 4"]],
    truth: GroundTruth,
    keys: Key[Array, " B"] | None,
) -> Terms:
    sizes = [len(level) for level in anchors]
    of_image = functools.partial(rpn.rpn_losses, config.rpn, jnp.concatenate(anchors), level_sizes=sizes)
    joined = jnp.concatenate(logits, axis=1)
    priority = _priorities(keys, "anchors", (len(joined), joined.shape[1]))
    return jax.vmap(of_image)(joined, jnp.concatenate(deltas, axis=1), truth, priority)


def _sample_rois(
    config: MaskRCNNConfig, proposals: Proposals, truth: GroundTruth, keys: Key[Array, " B"] | None
) -> SampledRoIs:
    candidates = proposals.valid.shape[1] + truth.valid.shape[1]
    priority = _priorities(keys, "rois", (len(truth.valid), candidates))
    draw = functools.partial(box_head.sample_rois, config.box_head, config.num_classes)
    return jax.lax.stop_gradient(jax.vmap(draw)(proposals, truth, priority))


def _box_terms(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    features: Features,
    roi_features: Float[Array, "B R _ _ _"],
    rois: SampledRoIs,
    batch: Batch,
    observe: Observe,
) -> Terms:
    """Losses of the box head, and of each further stage of a cascade on the boxes of the stage before."""
    terms: Terms = {}
    stages, truth = config.box_stages, batch.ground_truth
    for number, (stage, head) in enumerate(zip(stages, model.box_heads, strict=True), 1):
        shared = cascade.scale_gradient(roi_features, 1 / len(stages)) if len(stages) > 1 else roi_features
        class_logits, deltas = call(head, shared, rois.valid)
        suffix = f"_stage{number}" if number > 1 else ""
        class_logits = observe(f"class logits{suffix}", class_logits)
        deltas = observe(f"box deltas{suffix}", deltas)
        losses = jax.vmap(functools.partial(box_head.box_losses, stage))(class_logits, deltas, rois, truth)
        terms |= {name + suffix: term for name, term in losses.items()}
        if number < len(stages):
            boxes = jax.vmap(functools.partial(cascade.refine, stage))(rois.boxes, deltas, batch.image_sizes)
            relabel = functools.partial(cascade.relabel, stages[number], config.num_classes)
            rois = jax.vmap(relabel)(boxes, rois.valid, truth)
            roi_features = model.roi_features(config, stage.pooler, features, rois.boxes)
    return terms


def _matched_rois(config: MaskRCNNConfig, rois: SampledRoIs, truth: GroundTruth) -> Terms:
    """Count the sampled RoIs by IoU, and the foreground by level."""
    pooler = config.box_head.pooler
    levels = roi_levels(pooler, config.backbone.out_strides, rois.boxes)
    of_image = functools.partial(box_head.matched_rois, level_names=pooler.features)
    return jax.lax.stop_gradient(jax.vmap(of_image)(rois, truth, levels))


def _detect_boxes(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    features: Features,
    proposals: Proposals,
    image_sizes: Int[Array, "B 2"],
    pool: Pool,
) -> PaddedDetections:
    """Detections without masks. In a cascade the last stage's boxes have the mean of all stages' scores."""

    def classify(stage: BoxHeadConfig, head: BoxHead) -> tuple[Float[Array, "B P K1"], Float[Array, "B P Kd 4"]]:
        x = model.roi_features(config, stage.pooler, features, proposals.boxes, pool)
        class_logits, deltas = head(x, proposals.valid)
        return jax.nn.softmax(class_logits, axis=-1), deltas

    *earlier, last = zip(config.box_stages, model.box_heads, strict=True)
    scores = []
    for stage, head in earlier:
        stage_scores, deltas = classify(stage, head)
        scores.append(stage_scores)
        boxes = jax.vmap(functools.partial(cascade.refine, stage))(proposals.boxes, deltas, image_sizes)
        proposals = replace(proposals, boxes=boxes)
    last_scores, deltas = classify(*last)
    mean = sum(scores, start=last_scores) / len(config.box_stages)
    return jax.vmap(functools.partial(box_head.detect_boxes, last[0]))(mean, deltas, proposals, image_sizes)


def _priorities(keys: Key[Array, " B"] | None, stage: str, shape: tuple[int, int]) -> Float[Array, "B N"]:
    """Return the order in which a sampler prefers candidates: at random, or the lowest indices without keys."""
    if keys is None:
        return jnp.broadcast_to(-jnp.arange(shape[1], dtype=jnp.float32), shape)
    number = {"anchors": 0, "rois": 1}[stage]
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number), shape[1:]))(keys)
