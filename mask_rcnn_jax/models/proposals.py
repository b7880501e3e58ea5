"""The contract of a source of proposals, and proposals that come with the images (R-CNN, Fast R-CNN).

A source is one file, of this package or of another: a frozen dataclass that derives from `ProposalsConfig`, and the
network, a `ProposalSource`, that it builds. Shape letters: `P` proposals.
"""

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.ranges import AtLeastZero, Positive
from mask_rcnn_jax.structures import GroundTruth, Proposals

Losses = Callable[[GroundTruth, Keys], Terms]


class ProposalSource(nnx.Module, abc.ABC):
    """A network that proposes boxes. `recomputed` says that what it computes is not kept for gradients."""

    recomputed = False

    @abc.abstractmethod
    def propose(self, context: Context, *, train: bool) -> tuple[Proposals, Losses]:
        """Propose boxes of a batch, and return them with the losses of having done so.

        No gradient flows through proposals. The losses and measures, a `Mean` of [B] of each, are those of `Head`.
        """


@dataclass(frozen=True)
class ProposalsConfig(abc.ABC):
    """Settings of a source of proposals. Whatever derives from this class may stand as a model's `rpn`."""

    @abc.abstractmethod
    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> ProposalSource:
        """Build the network, with random variables."""

    def check(self, inputs: Inputs) -> None:
        """Raise ValueError, naming the setting, where the source cannot be built for these inputs."""
        inputs.check_poolers(self)


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
