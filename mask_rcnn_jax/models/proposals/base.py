"""The contract of a source of proposals.

A source is one file, of this package or of another: a frozen dataclass that derives from `ProposalsConfig`, and the
network, a `ProposalSource`, that it builds.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx

from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
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
