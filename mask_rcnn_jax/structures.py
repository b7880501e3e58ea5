"""Small frozen pytrees that travel between the layers.

Shape letters: `B` images, `H W` padded height and width, `G` ground-truth slots, `C` side of a mask grid,
`K` classes, `P` proposals, `R` sampled RoIs, `D` detection slots, `M` side of a predicted mask, `J` keypoints of an
instance, `h w` sides of a map, `S` kinds of stuff with one for all things.

Padding rows hold finite zeros and are marked by `valid`; no coordinate or score ever encodes invalidity. What the
loader yields holds NumPy arrays, in a program they are jax's.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped, UInt8

T = TypeVar("T")

IGNORED = 255  # label of pixels of which nothing is known, and of padding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroundTruth:
    """Annotated instances of one image, or of a batch with a leading axis.

    `masks[g]` is the instance's coverage (0..255) on a grid of equal cells over the rectangle `regions[g]`: its box, or
    that of `mask_regions`, in the boxes' coordinates. A full bitmap is the case (0, 0, W, H).
    """

    boxes: Float[Array, "*B G 4"]  # (x1, y1, x2, y2), resized pixels
    classes: Int[Array, "*B G"]  # 0..K-1
    masks: UInt8[Array, "*B G Ch Cw"]
    valid: Bool[Array, "*B G"]
    # (x, y, visibility): resized pixels, pixel index + 0.5; visibility 0 not annotated, 1 hidden, 2 visible
    keypoints: Float[Array, "*B G J 3"] | None = None
    mask_regions: Float[Array, "*B G 4"] | None = None  # None: the boxes
    # What each pixel of the padded image shows: 0 a thing, 1..S-1 a kind of stuff, or `IGNORED`; None without labels
    semantic: UInt8[Array, "*B H W"] | None = None

    @property
    def regions(self) -> Float[Array, "*B G 4"]:
        """The rectangles over which the grids of `masks` lie."""
        return self.boxes if self.mask_regions is None else self.mask_regions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The input of one training step."""

    images: Num[Array, "B H W 3"]  # RGB, uint8 or float of the same range, zero outside `image_sizes`
    image_sizes: Int[Array, "B 2"]  # (height, width) before padding
    ground_truth: GroundTruth
    example_index: Int[Array, " B"]  # position in the run's stream of examples; seeds the sampling
    proposals: "Proposals | None" = None  # for a model that is given them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """A batch as the loader yields it: what the step takes, and what the host is told of it."""

    inputs: Batch
    image_ids: Int[np.ndarray, " B"]
    dropped_instances: Int[np.ndarray, " B"]  # left out because there were more than slots
    replaced_images: Int[np.ndarray, " B"]  # that could not be read before this one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EvalBatch:
    """Images to detect in, as the loader yields them; padding rows are zero images with `valid` False."""

    images: Num[np.ndarray, "B H W 3"]  # as `Batch.images`
    image_sizes: Int[np.ndarray, "B 2"]  # (height, width) before padding
    original_sizes: Int[np.ndarray, "B 2"]  # (height, width) before resizing
    image_ids: Int[np.ndarray, " B"]
    valid: Bool[np.ndarray, " B"]
    proposals: "Proposals | None" = None  # for a model that is given them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Proposals:
    """Candidate boxes of one image, or a batch, best first."""

    boxes: Float[Array, "*B P 4"]  # resized pixels, clipped to the image
    logits: Float[Array, "*B P"]
    valid: Bool[Array, "*B P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampledRoIs:
    """RoIs drawn to train the heads; foreground stands first, within `BoxHeadConfig.foreground_slots`."""

    boxes: Float[Array, "*B R 4"]
    gt_index: Int[Array, "*B R"]  # the matched ground truth
    classes: Int[Array, "*B R"]  # of the matched ground truth; K (background) where not foreground
    foreground: Bool[Array, "*B R"]
    valid: Bool[Array, "*B R"]
    counted_classes: Bool[Array, "*B R K"] | None = None  # those that the loss counts; None: all


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PaddedDetections:
    """Instances found in one image, or in a batch with a leading axis, best score first."""

    boxes: Float[Array, "*B D 4"]  # (x1, y1, x2, y2), resized pixels, clipped to the image
    scores: Float[Array, "*B D"]
    classes: Int[Array, "*B D"]
    masks: Float[Array, "*B D M M"] | None  # probabilities inside the box; None for a model without masks
    valid: Bool[Array, "*B D"]
    keypoints: Float[Array, "*B D J 3"] | None = None  # (x, y, score), resized pixels; None for a model without them
    # What heads of others say, by name: of each instance [*B, D, ...], and of the image, on a grid of equal cells over
    # all of it with its padding [*B, h, w, ...].
    extras: dict[str, Shaped[Array, "..."]] = field(default_factory=dict)
    maps: dict[str, Shaped[Array, "..."]] = field(default_factory=dict)
    # Logits of kinds of stuff, on a grid of equal cells as `maps`; None for a model without a semantic head.
    stuff: Float[Array, "*B h w S"] | None = None


def copied(tree: T) -> T:
    """Copy every array of a structure into memory of its own, as NumPy's."""
    return jax.tree.map(np.array, tree)
