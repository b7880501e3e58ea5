"""Proposals that come with the images (R-CNN, Fast R-CNN).

Shape letters: `P` proposals.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.context import Context, Inputs
from mask_rcnn_jax.models.proposals.base import Losses, ProposalsConfig, ProposalSource
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ranges import AtLeastZero, Positive
from mask_rcnn_jax.structures import Proposals


@dataclass(frozen=True)
class GivenProposalsConfig(ProposalsConfig):
    """Boxes that come with the images, as Fast R-CNN takes them (https://arxiv.org/abs/1504.08083)."""

    num_train: Positive = 2000  # an image, those with the highest logits
    num_test: Positive = 1000
    min_box_size: AtLeastZero = 0.0  # proposals keep sides above it once they are clipped

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "GivenProposals":
        return GivenProposals(self)


class GivenProposals(ProposalSource):
    """Hands on the best of the proposals that came with the batch. It learns nothing."""

    def __init__(self, config: GivenProposalsConfig):
        self.config = config

    def propose(self, context: Context, *, train: bool) -> tuple[Proposals, Losses]:
        if context.proposals is None:
            raise UserError(
                "the model is given its proposals (rpn is GivenProposalsConfig), but none come with the images; give"
                " them, or set rpn to RPNConfig"
            )
        number = self.config.num_train if train else self.config.num_test
        choose = functools.partial(_best, number=number, min_box_size=self.config.min_box_size)
        best = jax.vmap(choose)(context.proposals, context.image_sizes)
        return context.observe("proposals", best), lambda truth, keys: {}


@jax.named_scope("proposals")
def _best(given: Proposals, image_size: Int[Array, "2"], *, number: int, min_box_size: float) -> Proposals:
    """The best given boxes of one image, clipped to it; those that are empty then, or not finite, are dropped first."""
    finite = jnp.isfinite(given.boxes).all(axis=-1) & jnp.isfinite(given.logits)
    boxes = box_ops.clip(jnp.where(finite[:, None], given.boxes, 0.0), image_size)
    valid = given.valid & finite & box_ops.nonempty(boxes, min_box_size)
    order = jnp.where(valid, given.logits, -jnp.inf)
    _, best = jax.lax.top_k(order, min(number, len(order)))
    valid = valid[best]
    return Proposals(jnp.where(valid[:, None], boxes[best], 0.0), jnp.where(valid, order[best], 0.0), valid)
