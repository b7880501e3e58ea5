"""Losses and scores of classes: one softmax over classes and background, a sigmoid a class, or a linear SVM a class.

Where an image's annotations say of some classes alone whether they are there, as LVIS's do, the sigmoids may count for
a sample of the classes (Zhou et al. 2021, https://arxiv.org/abs/2103.07461; Detectron2's federated loss). Shape
letters: `R` RoIs, `G` ground-truth slots, `K` classes, `K1` classes and background, which is the last.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mask_rcnn_jax.models.losses import Mean, binary_cross_entropy, masked_mean, softmax_cross_entropy
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ranges import NotNegative, Positive, Range, Share
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs

ClassLoss = Literal["softmax", "sigmoid", "hinge"]


@dataclass(frozen=True)
class FederatedConfig:
    """The classes that count in an image: those annotated in it, and others that are drawn."""

    num_classes: Annotated[int, Range(1, 100_000)] = 50  # at least so many, with background, which Detectron2 counts
    # How many images of the dataset have each class, to the power of which it is drawn; none: all are drawn alike.
    image_counts: tuple[NotNegative, ...] = ()
    power: Share = 0.5

    def check(self, num_classes: int) -> None:
        """Raise ValueError, naming the setting, where the counts are not one a class of the model."""
        if self.image_counts and len(self.image_counts) != num_classes:
            raise ValueError(
                f"federated.image_counts must be one for each of {num_classes} classes, not {len(self.image_counts)}"
            )


@dataclass(frozen=True)
class HingeConfig:
    """The boxes from which the linear SVMs of R-CNN learn (Girshick et al. 2014, appendix B), one SVM a class.

    Its objects' own boxes are positive, boxes that overlap none of them much are negative, and others do not count. In
    place of mining over the whole dataset, the negatives of an image with the highest scores count.
    """

    positive_iou: Share = 0.99  # of a box that is an object's own, whatever was rounded
    background_iou: Share = 0.3  # negative boxes have less, with each object of the class
    hard_negatives: Positive = 16  # of each class and image


def hinge_candidates(
    config: HingeConfig, num_classes: int, rois: SampledRoIs, truth: GroundTruth
) -> Bool[Array, "R {num_classes}"]:
    """Return which RoIs of one image the SVM of each class may learn from."""
    iou = jnp.where(truth.valid, box_ops.pairwise_iou(rois.boxes, truth.boxes), 0.0)
    highest = jnp.zeros((num_classes, len(rois.boxes)), iou.dtype).at[truth.classes].max(iou.T).T
    of_class = rois.classes[:, None] == jnp.arange(num_classes)
    counted = (of_class & (highest >= config.positive_iou)) | (highest < config.background_iou)
    return counted & rois.valid[:, None]


def draw_classes(config: FederatedConfig, truth: GroundTruth, race: Float[Array, " K"]) -> Bool[Array, " K"]:
    """Return which classes count in one image.

    `race` are logarithms of numbers drawn uniformly between 0 and 1: divided by the weights of classes, the highest
    are a sample by weight without replacement. A class that no image has is not drawn.
    """
    classes = jnp.arange(race.shape[0])
    annotated = jnp.any((truth.classes[:, None] == classes) & truth.valid[:, None], axis=0)
    counts = jnp.asarray(config.image_counts or (1,) * race.shape[0], race.dtype)
    others = ~annotated & (counts > 0)
    finish = jnp.where(others, race / jnp.where(counts > 0, counts, 1) ** config.power, -jnp.inf)
    place = jnp.argsort(jnp.argsort(-finish, stable=True))
    return annotated | (others & (place < config.num_classes - 1 - jnp.sum(annotated)))


def class_loss(
    kind: ClassLoss, class_logits: Float[Array, "R K1"], rois: SampledRoIs, hinge: HingeConfig = HingeConfig()
) -> Mean:
    """Compute the loss of the classes of one image's RoIs, over the number of RoIs.

    With sigmoids and SVMs it is summed over the classes that count, and background has no logit of its own.
    """
    if kind == "softmax":
        return masked_mean(softmax_cross_entropy(class_logits, rois.classes), rois.valid)
    logits = class_logits[:, :-1]
    if kind == "hinge":
        return masked_mean(jnp.sum(_hinge_losses(hinge, logits, rois), axis=1), rois.valid)
    losses = binary_cross_entropy(logits, jax.nn.one_hot(rois.classes, logits.shape[1], dtype=logits.dtype))
    if rois.counted_classes is not None:
        losses = jnp.where(rois.counted_classes, losses, 0.0)
    return masked_mean(jnp.sum(losses, axis=1), rois.valid)


def _hinge_losses(config: HingeConfig, margins: Float[Array, "R K"], rois: SampledRoIs) -> Float[Array, "R K"]:
    counted = rois.valid[:, None] if rois.counted_classes is None else rois.counted_classes
    of_class = rois.classes[:, None] == jnp.arange(margins.shape[1])
    negatives = counted & ~of_class
    order = jnp.where(negatives, jax.lax.stop_gradient(margins), -jnp.inf)
    place = jnp.argsort(jnp.argsort(-order, axis=0, stable=True), axis=0)
    hard = negatives & (place < config.hard_negatives)
    losses = jax.nn.relu(1 - jnp.where(of_class, margins, -margins))
    return jnp.where((counted & of_class) | hard, losses, 0.0)


def predicted_classes(kind: ClassLoss, class_logits: Float[Array, "R K1"]) -> Int[Array, " R"]:
    """Return the likeliest class of each RoI; without a softmax background, K, where none is likelier than not."""
    if kind != "softmax":
        class_logits = class_logits.at[:, -1].set(0.0)
    return jnp.argmax(class_logits, axis=-1)


def class_scores(kind: ClassLoss, class_logits: Float[Array, "*B K1"]) -> Float[Array, "*B K1"]:
    """Return the probabilities of classes; the last, of background, means nothing without a softmax.

    Those of SVMs, which have none, are in the order of their margins: .5 where that is 0.
    """
    return jax.nn.softmax(class_logits, axis=-1) if kind == "softmax" else jax.nn.sigmoid(class_logits)
