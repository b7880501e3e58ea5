"""The contract of a head: what it learns of the RoIs of training, and what it adds to the instances that were found.

A head is one file, of this package or of another: a frozen dataclass that derives from `HeadConfig`, and the network,
a `Head`, that it builds. `docs/extending.md` shows one. Shape letters: `B` images, `D` detection slots.
"""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flax import nnx

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.context import Context, Inputs, Keys, Terms
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs


class Head(nnx.Module, abc.ABC):
    """A network and what is made of its outputs. `recomputed` says that they are not kept for gradients."""

    recomputed = False

    @abc.abstractmethod
    def losses(self, context: Context, rois: SampledRoIs, truth: GroundTruth, keys: Keys) -> Terms:
        """Compute the losses (`loss/...`, their sum is minimised) and measures by name, a `Mean` of [B] of each.

        `rois` are the slots that may hold foreground, `rois.foreground` says which do; their boxes are as
        `HeadConfig.on_predicted_boxes` says. `keys` are this head's own, one an image; without them nothing may be
        drawn at random.
        """

    @abc.abstractmethod
    def answer(self, context: Context, found: PaddedDetections) -> Any:
        """Compute what the network says of each instance, arrays [B, D, ...], or of each image, [B, ...].

        `found` is what the box heads found: boxes, scores, classes and `valid`, without what other heads add. With
        test-time augmentation the answers to several versions of an image are averaged before `add`.
        """

    @abc.abstractmethod
    def add(self, found: PaddedDetections, answer: Any) -> PaddedDetections:
        """Lay the answer into the detections, zeros in padded rows: in a field, in `extras` or in `maps`."""

    def unmirrored(self, answer: Any, keypoints: tuple[int, ...]) -> Any:
        """Return the answer to mirrored images as one to the images as they are.

        `keypoints` are those that each becomes in a mirror. Raises UserError for a head that does not know.
        """
        raise UserError(
            f"{type(self).__name__} does not say how its answers are averaged over versions of an image: predict"
            " without test-time augmentation, or give it the method `unmirrored`"
        )


@dataclass(frozen=True)
class HeadConfig(abc.ABC):
    """Settings of a head. Whatever derives from this class may stand among a model's `heads`."""

    name: ClassVar[str]  # of its variables in checkpoints, and in `remat`
    needs: ClassVar[Literal["masks", "keypoints", "semantic"] | None] = (
        None  # of the annotations, besides boxes and classes
    )
    # True trains it on the boxes that the box heads make of the RoIs, unclipped, in place of the RoIs' own.
    on_predicted_boxes: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> Head:
        """Build the network, with random variables."""

    def check(self, inputs: Inputs) -> None:
        """Raise ValueError, naming the setting, where the head cannot be built for these inputs."""
        inputs.check_poolers(self)
