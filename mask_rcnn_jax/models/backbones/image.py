"""The image itself as the only feature: for models that look at each RoI by itself (R-CNN).

Shape letters: `B` images, `H W` padded height and width.
"""

from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float

from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature


@dataclass(frozen=True)
class ImageConfig(BackboneConfig):
    """A backbone without variables, whose feature `image` are the normalised pixels."""

    @property
    def features(self) -> dict[str, Feature]:
        return {"image": Feature(3, 1)}

    def build(self, rngs: nnx.Rngs) -> "Image":
        return Image()


class Image(nnx.Module):
    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B H W 3"]]:
        return {"image": images}
