"""Losses and scores of classes: one softmax over classes and background, or a sigmoid a class.

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
from mask_rcnn_jax.ranges import NotNegative, Range, Share
from mask_rcnn_jax.structures import GroundTruth, SampledRoIs

ClassLoss = Literal["softmax", "sigmoid"]


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


def class_loss(kind: ClassLoss, class_logits: Float[Array, "R K1"], rois: SampledRoIs) -> Mean:
    """Compute the loss of the classes of one image's RoIs, over the number of RoIs.

    With sigmoids it is summed over the classes that count, and background has no logit of its own.
    """
    if kind == "softmax":
        return masked_mean(softmax_cross_entropy(class_logits, rois.classes), rois.valid)
    logits = class_logits[:, :-1]
    losses = binary_cross_entropy(logits, jax.nn.one_hot(rois.classes, logits.shape[1], dtype=logits.dtype))
    if rois.counted_classes is not None:
        losses = jnp.where(rois.counted_classes, losses, 0.0)
    return masked_mean(jnp.sum(losses, axis=1), rois.valid)


def predicted_classes(kind: ClassLoss, class_logits: Float[Array, "R K1"]) -> Int[Array, " R"]:
    """Return the likeliest class of each RoI; with sigmoids background, K, where none is likelier than not."""
    if kind == "sigmoid":
        class_logits = class_logits.at[:, -1].set(0.0)
    return jnp.argmax(class_logits, axis=-1)


def class_scores(kind: ClassLoss, class_logits: Float[Array, "*B K1"]) -> Float[Array, "*B K1"]:
    """Return the probabilities of classes; the last, of background, means nothing with sigmoids."""
    return jax.nn.softmax(class_logits, axis=-1) if kind == "softmax" else jax.nn.sigmoid(class_logits)
