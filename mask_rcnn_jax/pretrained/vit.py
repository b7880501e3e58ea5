"""ViTDet's model from the tensors of its file. Shapes are the file's, by their paths here."""

import math
from collections.abc import Mapping
from dataclasses import replace

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, NormConfig, SimplePyramidConfig, ViTConfig, architectures
from mask_rcnn_jax.models.backbones.simple_pyramid import LAYER_NORM

_PLACE = "backbone/bottom_up/"

Shapes = Mapping[str, tuple[int, ...]]


def is_vit(shapes: Shapes) -> bool:
    """Tell whether the backbone is a plain vision transformer."""
    return f"{_PLACE}patches/kernel" in shapes


def vitdet_of(shapes: Shapes, num_classes: int) -> tuple[MaskRCNNConfig, NormConfig]:
    """Infer the backbone of a ViTDet, in a model with the published heads, and the norm that all have.

    Raises UserError where the tensors do not tell what ViT it is.
    """
    channels, _, patch, _ = _shape(shapes, "patches/kernel")
    _, positions, _ = _shape(shapes, "positions")
    depth = sum(path.startswith(_PLACE) and path.endswith("/qkv/kernel") for path in shapes)
    if not all(f"{_PLACE}block{i + 1}/attention/relative_rows" in shapes for i in range(depth)):
        raise UserError(
            "its ViT has no relative positions, which tell the number of heads; give an experiment with the model by"
            " --config"
        )
    tables = [_shape(shapes, f"block{i + 1}/attention/relative_rows") for i in range(depth)]
    sides = [(length + 1) // 2 for length, _ in tables]
    inside, _ = _shape(shapes, "block1/mlp/expand/kernel")
    vit = ViTConfig(
        channels=channels,
        depth=depth,
        heads=channels // tables[0][1],
        patch=patch,
        mlp_ratio=inside // channels,
        window=min(sides),
        global_blocks=tuple(i for i, side in enumerate(sides) if side == max(sides)),
        image_size=patch * max(sides),
        pretrained_size=patch * math.isqrt(positions),  # with or without a class token
    )
    model = architectures.vitdet(vit, num_classes)
    width = shapes["backbone/p4/output/conv/kernel"][0] if "backbone/p4/output/conv/kernel" in shapes else 256
    return replace(model, backbone=SimplePyramidConfig(vit, channels=width)), LAYER_NORM


def square_side(config: MaskRCNNConfig) -> int | None:
    """Return the side of the squares that the images of a ViTDet are padded to; None for other models."""
    pyramid = config.backbone
    if isinstance(pyramid, SimplePyramidConfig) and isinstance(pyramid.bottom_up, ViTConfig):
        return -(-pyramid.bottom_up.image_size // 32) * 32
    return None


def assumptions_of(vit: ViTConfig, key: str, config: MaskRCNNConfig) -> list[str]:
    """List what the file does not tell, with the setting that changes it; `key` is that of the backbone."""
    side = square_side(config)
    return [
        f"pixels are RGB, divided by {', '.join(map(str, config.pixel_std))} (model.pixel_std)",
        f"images are padded to squares of {side} (data.canvas)",
        f"branches of the last block are left out in training for {vit.drop_path:.0%} of the images ({key}.drop_path)",
    ]


def _shape(shapes: Shapes, path: str) -> tuple[int, ...]:
    if _PLACE + path not in shapes:
        raise UserError(f"it has no tensor for {_PLACE}{path}, so it is no ViTDet that this project knows")
    return shapes[_PLACE + path]
