"""Mask R-CNN: backbone, proposals, RoIs, heads.

The networks are written for a batch, everything between them for one image and mapped here with `jax.vmap`.
Shape letters: `B` images, `H W` padded height and width, `N` anchors, `P` proposals, `G` ground-truth slots,
`R` sampled RoIs, `D` detection slots, `M` side of a mask.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from mask_rcnn_jax.models import box_head, mask_head, rpn
from mask_rcnn_jax.models.box_head import BoxHeadConfig
from mask_rcnn_jax.models.fpn import FPNConfig
from mask_rcnn_jax.models.losses import Mean
from mask_rcnn_jax.models.mask_head import MaskHeadConfig
from mask_rcnn_jax.models.pooler import pool
from mask_rcnn_jax.models.rpn import RPNConfig
from mask_rcnn_jax.structures import Batch, Detections

Arrays = dict[str, Any]  # nested dicts with arrays at the leaves


@dataclass(frozen=True)
class MaskRCNNConfig:
    """The whole model. Defaults are Detectron2's R50-FPN; without a mask head it is Faster R-CNN."""

    num_classes: int = 80
    backbone: FPNConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig | None = MaskHeadConfig()
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, of values 0..255
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["bgr", "rgb"] = "bgr"  # in which the backbone was trained; images are RGB always
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the networks; coordinates and losses are float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Variables:
    """All that a model has learnt, in nested dicts: `params` are trained, `buffers` (frozen weights, norms) are not."""

    params: Arrays
    buffers: Arrays


class MaskRCNN(nnx.Module):
    """The networks of the configuration; what happens between them is in the functions of this file."""

    def __init__(self, config: MaskRCNNConfig, *, rngs: nnx.Rngs):
        channels = config.backbone.out_channels
        self.backbone = config.backbone.build(rngs)
        self.rpn = config.rpn.build(channels[config.rpn.features[0]], rngs)
        box = config.box_head
        self.box_head = box.build(channels[box.pooler.features[0]], config.num_classes, rngs)
        mask = config.mask_head
        self.mask_head = mask and mask.build(channels[mask.pooler.features[0]], config.num_classes, rngs)


def init(config: MaskRCNNConfig, key: Key[Array, ""]) -> Variables:
    """Random variables; every layer as Detectron2 initialises it."""
    _, params, buffers = nnx.split(MaskRCNN(config, rngs=nnx.Rngs(key)), nnx.Param, ...)
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(buffers))


@functools.cache
def _structure(config: MaskRCNNConfig, train: bool) -> nnx.GraphDef[MaskRCNN]:
    def build() -> MaskRCNN:
        model = MaskRCNN(config, rngs=nnx.Rngs(0))
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)
        # Parameters stay float32; each layer casts them, and gradients come back in float32.
        model.set_attributes(dtype=jnp.dtype(config.dtype), raise_if_not_found=False)
        return model

    return nnx.graphdef(nnx.eval_shape(build))


def _assemble(config: MaskRCNNConfig, variables: Variables, train: bool) -> MaskRCNN:
    return nnx.merge(_structure(config, train), variables.params, variables.buffers)


def normalize(
    config: MaskRCNNConfig, images: Num[Array, "B H W 3"], image_sizes: Int[Array, "B 2"]
) -> Float[Array, "B H W 3"]:
    """Subtracts the mean and divides by the deviation; padding is zero afterwards."""
    order = slice(None, None, -1 if config.channel_order == "bgr" else 1)
    images = (images.astype(jnp.float32) - jnp.array(config.pixel_mean)) / jnp.array(config.pixel_std)
    rows = jnp.arange(images.shape[1])[None, :, None] < image_sizes[:, 0, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :] < image_sizes[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], images[..., order], 0.0)


def _propose(
    config: MaskRCNNConfig,
    model: MaskRCNN,
    images: Float[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    *,
    train: bool,
):
    """Features, anchors, the RPN's outputs by level, and proposals."""
    features = model.backbone(images.astype(config.dtype))
    logits, deltas = model.rpn([features[name] for name in config.rpn.features])
    anchors = rpn.level_anchors(config.rpn, features, config.backbone.out_strides, (images.shape[1], images.shape[2]))
    propose = functools.partial(
        rpn.propose,
        config.rpn,
        anchors,
        pre_nms=config.rpn.pre_nms_train if train else config.rpn.pre_nms_test,
        post_nms=config.rpn.post_nms_train if train else config.rpn.post_nms_test,
    )
    return features, anchors, logits, deltas, jax.vmap(propose)(logits, deltas, image_sizes)


def loss_terms(
    config: MaskRCNNConfig, variables: Variables, batch: Batch, keys: Key[Array, " B"] | None
) -> tuple[dict[str, Mean], Arrays]:
    """Losses (`loss/...`, their sum is minimised) and measures of the batch by name, and the updated buffers.

    `keys` seed the sampling of anchors and RoIs, one an image; `None` takes the candidates with the lowest indices.
    Batch norm synchronises over the mesh axis `data`, which must then exist.
    """
    model = _assemble(config, variables, train=True)
    truth, strides = batch.ground_truth, config.backbone.out_strides
    images = normalize(config, batch.images, batch.image_sizes)
    features, anchors, logits, deltas, proposals = _propose(config, model, images, batch.image_sizes, train=True)

    anchors, logits, deltas = jnp.concatenate(anchors), jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)
    priority = _priorities(keys, "anchors", (len(images), logits.shape[1]))
    terms = jax.vmap(functools.partial(rpn.rpn_losses, config.rpn, anchors))(logits, deltas, truth, priority)

    candidates = proposals.valid.shape[1] + truth.valid.shape[1]
    priority = _priorities(keys, "rois", (len(images), candidates))
    draw = functools.partial(box_head.sample_rois, config.box_head, config.num_classes)
    rois = jax.lax.stop_gradient(jax.vmap(draw)(proposals, truth, priority))
    roi_features = pool(config.box_head.pooler, features, strides, rois.boxes)
    class_logits, box_deltas = model.box_head(roi_features)
    terms |= jax.vmap(functools.partial(box_head.box_losses, config.box_head))(class_logits, box_deltas, rois, truth)

    if config.mask_head is not None and model.mask_head is not None:
        foreground = jax.tree.map(lambda x: x[:, : config.box_head.foreground_slots], rois)
        roi_features = pool(config.mask_head.pooler, features, strides, foreground.boxes)
        mask_logits = model.mask_head(roi_features, foreground.classes)
        mask_losses = functools.partial(mask_head.mask_losses, config.mask_head)
        terms |= jax.vmap(mask_losses)(mask_logits, foreground.boxes, foreground.gt_index, foreground.foreground, truth)
    buffers = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
    return jax.tree.map(jnp.sum, terms), buffers


def _priorities(keys: Key[Array, " B"] | None, stage: str, shape: tuple[int, int]) -> Float[Array, "B N"]:
    """Which candidates a sampler prefers: at random, or the lowest indices without keys."""
    if keys is None:
        return jnp.broadcast_to(-jnp.arange(shape[1], dtype=jnp.float32), shape)
    number = {"anchors": 0, "rois": 1}[stage]
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number), shape[1:]))(keys)


def detect(
    config: MaskRCNNConfig,
    variables: Variables,
    images: Num[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
) -> Detections:
    """Detections of a batch of padded images, boxes in its pixels and clipped to `image_sizes` (height, width)."""
    model = _assemble(config, variables, train=False)
    strides = config.backbone.out_strides
    images = normalize(config, images, image_sizes)
    features, _, _, _, proposals = _propose(config, model, images, image_sizes, train=False)
    class_logits, box_deltas = model.box_head(pool(config.box_head.pooler, features, strides, proposals.boxes))
    detect_boxes = functools.partial(box_head.detect_boxes, config.box_head)
    detections = jax.vmap(detect_boxes)(class_logits, box_deltas, proposals, image_sizes)
    if config.mask_head is None or model.mask_head is None:
        return detections
    roi_features = pool(config.mask_head.pooler, features, strides, detections.boxes)
    masks = jax.nn.sigmoid(model.mask_head(roi_features, detections.classes))
    return replace(detections, masks=jnp.where(detections.valid[..., None, None], masks, 0.0))
