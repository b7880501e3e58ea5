"""Mask R-CNN: backbone, proposals, RoIs, heads.

The networks are written for a batch, everything between them for one image and mapped with `jax.vmap`.
Shape letters: `B` images, `H W` padded height and width, `R` RoIs of an image.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from mask_rcnn_jax.models.checks import check_features, check_found, check_terms
from mask_rcnn_jax.models.context import Context, Features, Keys, Observe, Terms, own_keys, unobserved
from mask_rcnn_jax.models.heads.second_stage import BoxStages, box_terms, detect_boxes, sample_rois
from mask_rcnn_jax.models.networks import MaskRCNN, MaskRCNNConfig, Variables, networks
from mask_rcnn_jax.models.pooler import Pool, RoIPoolerConfig, pool
from mask_rcnn_jax.ops.precision import at_least_float32
from mask_rcnn_jax.structures import Batch, PaddedDetections, Proposals


def loss_terms(
    config: MaskRCNNConfig, variables: Variables, batch: Batch, keys: Keys, observe: Observe = unobserved
) -> tuple[Terms, dict[str, Any]]:
    """Losses (`loss/...`, their sum is minimised) and measures of the batch by name, and the updated buffers.

    `keys` seed the sampling of anchors and RoIs, one an image; `None` takes the candidates with the lowest indices.
    Batch norm synchronises over the mesh axis `data`, which must then exist.
    """
    model, truth = networks(config, variables, train=True), batch.ground_truth
    context = see(config, model, batch.images, batch.image_sizes, observe, keys=own_keys(keys, "backbone"))
    context = replace(context, proposals=batch.proposals)
    proposals, losses = model.rpn.propose(context, train=True)
    terms = losses(truth, keys)
    stages = _box_stages(config, model)
    rois = sample_rois(stages, proposals, truth, keys)
    box_features = observe("RoI features", context.pool(config.box_head.pooler, rois.boxes))
    of_boxes, predicted = box_terms(stages, context, box_features, rois, truth)
    terms |= of_boxes

    foreground = jax.tree.map(lambda x: x[:, : config.box_head.foreground_slots], rois)
    refined = replace(foreground, boxes=predicted[:, : config.box_head.foreground_slots])

    def pool_foreground(pooler: RoIPoolerConfig, boxes: Float[Array, "B R 4"]) -> Float[Array, "B R _ _ _"]:
        if config.inputs.of_pooled and boxes is foreground.boxes and pooler == config.box_head.pooler:
            # Heads share what res5, or the trunk, made of the box head's RoIs.
            return box_features[:, : config.box_head.foreground_slots]
        return context.pool(pooler, boxes)

    for name, head in model.heads.items():
        trained = refined if config.all_heads[name].on_predicted_boxes else foreground
        of_head = head.losses(replace(context, pool=pool_foreground), trained, truth, own_keys(keys, name))
        terms |= check_terms(name, head, terms, of_head)
    buffers = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
    terms = {name: replace(term, total=observe(name, term.total)) for name, term in terms.items()}
    return jax.tree.map(jnp.sum, terms), buffers


def detect(
    config: MaskRCNNConfig,
    variables: Variables,
    images: Num[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    pool: Pool = pool,
    proposals: Proposals | None = None,
) -> PaddedDetections:
    """Detections of a batch of padded images, boxes in its pixels and clipped to `image_sizes` (height, width).

    `pool` is how RoIs are pooled: a program for other machines may have its own form. `proposals` are for a model that
    is given them.
    """
    model = networks(config, variables)
    context = see(config, model, images, image_sizes, pool=pool)
    return detect_from_features(config, model, replace(context, proposals=proposals))


def detect_from_features(config: MaskRCNNConfig, model: MaskRCNN, context: Context) -> PaddedDetections:
    """`detect` after the backbone."""
    found = boxes = find_boxes(config, model, context)
    for name, head in model.heads.items():
        found = check_found(name, head, found, head.add(found, head.answer(context, boxes)))
    return found


def find_boxes(config: MaskRCNNConfig, model: MaskRCNN, context: Context) -> PaddedDetections:
    """`detect_from_features` without what the other heads add."""
    proposals, _ = model.rpn.propose(context, train=False)
    return detect_boxes(_box_stages(config, model), context, proposals)


def see(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    images: Num[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    observe: Observe = unobserved,
    pool: Pool = pool,
    keys: Keys = None,
) -> Context:
    """Normalise images and apply the backbone."""
    images = observe("images", normalize(config, images, image_sizes))
    padded_size = images.shape[1], images.shape[2]
    made = config.backbone.apply(model.backbone, images.astype(config.dtype), keys)
    features = check_features(config.backbone, made, padded_size)
    context = context_of(config, model, observe("backbone features", features), padded_size, image_sizes, pool)
    return replace(context, observe=observe)


def context_of(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    features: Features,
    padded_size: tuple[int, int],
    image_sizes: Int[Array, "B 2"],
    pool: Pool = pool,
) -> Context:
    """Return what the stages after the backbone are shown; `padded_size` is (height, width) of the images."""

    def of_rois(pooler: RoIPoolerConfig, boxes: Float[Array, "B R 4"]) -> Float[Array, "B R _ _ _"]:
        return model.roi_features(config, pooler, features, boxes, pool)

    return Context(features, config.backbone.out_strides, image_sizes, padded_size, of_rois)


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


def _box_stages(config: MaskRCNNConfig, model: MaskRCNN) -> BoxStages:
    return BoxStages(config.box_stages, model.box_heads, config.num_classes)
