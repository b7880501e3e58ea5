"""The surroundings of the stages after the backbone: of what features they are built, and what of a batch they see.

Shape letters: `B` images, `R` RoIs an image, `N` candidates of an image.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mask_rcnn_jax.models.backbones.base import Feature
from mask_rcnn_jax.models.losses import Mean
from mask_rcnn_jax.models.pooler import RoIPoolerConfig
from mask_rcnn_jax.structures import Proposals

Features = Mapping[str, Float[Array, "B _ _ _"]]
Terms = dict[str, Mean]  # losses (`loss/...`, their sum is minimised) and measures, by name
Keys = Key[Array, " B"] | None  # one an image, or None where nothing is drawn at random
# Is shown what each stage made, arrays with a leading axis of images, and gives it back or something in its place.
Observe = Callable[[str, Any], Any]


def unobserved(stage: str, made: Any) -> Any:
    return made


@dataclass(frozen=True)
class Inputs:
    """The surroundings that a stage after the backbone is built for."""

    features: Mapping[str, Feature]  # of the backbone
    num_classes: int
    # C4, R-CNN: what the network that is applied to RoIs makes of them, at a stride of pooled cells.
    of_pooled: Feature | None = None

    def of_rois(self, pooler: RoIPoolerConfig) -> tuple[int, int]:
        """Return the channels and the side of pooled features. Raises ValueError as `channels`."""
        channels = self.channels(pooler.features, "pooler.features")
        if self.of_pooled is not None:
            return self.of_pooled.channels, -(-pooler.output_size // self.of_pooled.stride)
        return channels, pooler.output_size

    def channels(self, names: tuple[str, ...], key: str) -> int:
        """Return the channels that features have in common.

        Raises ValueError, naming `key`, where the backbone does not make them, or they differ in channels.
        """
        if unknown := [name for name in names if name not in self.features]:
            raise ValueError(f"{key} has {', '.join(unknown)}, but the backbone makes {', '.join(self.features)}")
        found = {self.features[name].channels for name in names}
        if len(found) > 1:
            raise ValueError(f"{key} {', '.join(names)} differ in channels; one head takes one number")
        return found.pop()

    def check_poolers(self, config: Any) -> None:
        """Raise ValueError as `of_rois` for a setting of a configuration that is a pooler."""
        for field in dataclasses.fields(config):
            if isinstance(pooler := getattr(config, field.name), RoIPoolerConfig):
                self.channels(pooler.features, f"{field.name}.features")


@dataclass(frozen=True)
class Context:
    """A batch as the backbone has seen it."""

    features: Features
    strides: Mapping[str, int]  # of the features
    image_sizes: Int[Array, "B 2"]  # (height, width) without padding
    padded_size: tuple[int, int]
    # The features of RoIs [B, R, 4] in padded pixels that heads are applied to: [B, R, P, P, C].
    pool: Callable[[RoIPoolerConfig, Float[Array, "B R 4"]], Float[Array, "B R _ _ _"]]
    observe: Observe = unobserved
    proposals: Proposals | None = None  # those that came with the batch


def priorities(keys: Keys, number: int, shape: tuple[int, int]) -> Float[Array, "B N"]:
    """Return the order in which a sampler prefers candidates: at random, or the lowest indices without keys.

    `number` tells apart the samplers that share the keys.
    """
    if keys is None:
        return jnp.broadcast_to(-jnp.arange(shape[1], dtype=jnp.float32), shape)
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number), shape[1:]))(keys)


def own_keys(keys: Keys, name: str) -> Keys:
    """Return the keys of the head or other part of this name, which do not depend on other parts."""
    return keys if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(name.encode())))(keys)
