"""The contract of a backbone: what others know of it before it is built, and what it makes of images.

A backbone is one file, of this package or of another: a frozen dataclass that derives from `BackboneConfig`, and the
network that it builds. `docs/extending.md` shows one. Shape letters: `B` images, `H W` padded height and width.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Key


def built_stages(stages: tuple[str, ...], out_features: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stages up to the last one in `out_features`. Raises ValueError where those are none, or no stages."""
    if not out_features or any(name not in stages for name in out_features):
        raise ValueError(f"out_features must be some of {', '.join(stages)}, not {out_features}")
    return stages[: max(map(stages.index, out_features)) + 1]


def is_power_of_two(stride: int) -> bool:
    return stride > 0 and not stride & (stride - 1)


class Feature(NamedTuple):
    """A map that a backbone makes."""

    channels: int
    stride: int  # pixels of the padded image from one cell to the next, a power of 2


@runtime_checkable
class Backbone(Protocol):
    """A network, an `nnx.Module`, that makes the features of its configuration."""

    def __call__(self, images: Float[Array, "B H W 3"]) -> Mapping[str, Float[Array, "B _ _ _"]]:
        """Compute the features [B, ceil(H / stride), ceil(W / stride), channels] by name.

        `images` are normalised, of the model's dtype, and zero where they are padding; sides are multiples of the
        configuration's `size_divisor`. The network of a configuration that `draws` takes keys too, see `apply`.
        """
        ...


@dataclass(frozen=True)
class BackboneConfig(abc.ABC):
    """Settings of a backbone. Whatever derives from this class may stand wherever a configuration has a backbone."""

    @property
    @abc.abstractmethod
    def features(self) -> Mapping[str, Feature]:
        """Return the features by name, from the finest stride to the coarsest."""

    @property
    def size_divisor(self) -> int:
        """Return the number that the sides of images must be multiples of."""
        return 1

    @property
    def draws(self) -> bool:
        """Tell whether the network draws at random in training; it then takes keys, one an image, after the images."""
        return False

    @property
    def layers(self) -> int:
        """Return how many layers the network numbers, for learning rates that decay from layer to layer; 0: none."""
        return 0

    def layer_of(self, path: tuple[str, ...]) -> int:
        """Return the layer of the network's parameter at `path`, from 0 for the first; `layers` stands for what comes
        after the last, which is trained at the full rate.
        """
        return self.layers

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> Backbone:
        """Build the network, with random variables."""

    def apply(self, network: Any, images: Float[Array, "B H W 3"], keys: Key[Array, " B"] | None) -> Any:
        """Return what the configuration's network makes of images; without keys nothing is drawn at random."""
        return network(images, keys) if self.draws else network(images)

    @property
    def out_strides(self) -> dict[str, int]:
        """Return the stride of each feature."""
        return {name: feature.stride for name, feature in self.features.items()}

    @property
    def out_channels(self) -> dict[str, int]:
        """Return the channels of each feature."""
        return {name: feature.channels for name, feature in self.features.items()}


@dataclass(frozen=True)
class PyramidConfig(BackboneConfig):
    """Settings of a pyramid on the features of another backbone, which its network has as `bottom_up`."""

    bottom_up: BackboneConfig

    @property
    def draws(self) -> bool:
        return self.bottom_up.draws

    @property
    def layers(self) -> int:
        return self.bottom_up.layers

    def layer_of(self, path: tuple[str, ...]) -> int:
        return self.bottom_up.layer_of(path[1:]) if path[0] == "bottom_up" else self.layers
