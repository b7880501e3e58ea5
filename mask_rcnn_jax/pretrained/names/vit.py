"""Names of plain vision transformers, those of MAE and of Detectron2's ViTDet, and of ViTDet's simple pyramid."""

import math
from typing import Literal

import numpy as np

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import NormConfig, ViTConfig
from mask_rcnn_jax.pretrained.names.backbone import BackboneNames, Conventions, Shapes, Tensors, count
from mask_rcnn_jax.pretrained.names.table import CONV, DECONV, LINEAR, NORM, Layout, Row, Table, same


def _grid(tensor: np.ndarray, side: int) -> np.ndarray:
    """[1, tokens, C] to [G, G, C], without the position of a class token, which comes first."""
    tokens = tensor.reshape(-1, tensor.shape[-1])
    grid = math.isqrt(len(tokens))
    return tokens[len(tokens) - grid**2 :].reshape(grid, grid, -1)


_RELATIVE: Layout = {"rel_pos_h": ("/relative_rows", same), "rel_pos_w": ("/relative_columns", same)}


def _positions(last: str) -> Layout:
    return {last: ("positions", _grid)}


def _rows(source: str, target: str) -> tuple[Row, ...]:
    """Rows of a ViT whose names begin as the pattern `source` says, below the path `target`, without its positions."""
    block, place = rf"{source}blocks\.(\d+)\.", f"{target}block{{0+1}}"
    return (
        Row(rf"{source}patch_embed\.proj", f"{target}patches", CONV),
        Row(rf"{block}norm1", f"{place}/attention/norm", NORM),
        Row(rf"{block}attn", f"{place}/attention", _RELATIVE),
        Row(rf"{block}attn\.qkv", f"{place}/attention/qkv", LINEAR),
        Row(rf"{block}attn\.proj", f"{place}/attention/out", LINEAR),
        Row(rf"{block}norm2", f"{place}/mlp/norm", NORM),
        Row(rf"{block}mlp\.fc1", f"{place}/mlp/expand", LINEAR),
        Row(rf"{block}mlp\.fc2", f"{place}/mlp/contract", LINEAR),
    )


def _level_rows(level: int, before: dict[int, tuple[str, Layout]], first: int) -> list[Row]:
    """Rows of a level of the pyramid, a sequence of layers by number: two convolutions with norms, the `first` and the
    one after it, and those `before`.
    """
    name, place = rf"backbone\.simfp_{level}", f"backbone/p{level}"
    rows = [Row(rf"{name}\.{number}", f"{place}/{layer}", layout) for number, (layer, layout) in before.items()]
    for number, layer in ((first, "lateral"), (first + 1, "output")):
        rows.append(Row(rf"{name}\.{number}", f"{place}/{layer}/conv", CONV))
        rows.append(Row(rf"{name}\.{number}\.norm", f"{place}/{layer}/norm", NORM))
    return rows


DETECTRON2_ROWS = (
    Row(r"backbone\.net", "backbone/bottom_up/", _positions("pos_embed")),
    *_rows(r"backbone\.net\.", "backbone/bottom_up/"),
    *_level_rows(2, {0: ("deconv1", DECONV), 1: ("norm", NORM), 3: ("deconv2", DECONV)}, 4),
    *_level_rows(3, {0: ("deconv1", DECONV)}, 1),
    *_level_rows(4, {}, 0),
    *_level_rows(5, {}, 1),  # after a pool
)


# Of a ViT that was trained by itself. Left out are a classifier and its norm, the class token, and what MAE
# reconstructs images with. The name pos_embed has no dot, and so is divided like Caffe2's.
_TABLE = Table(
    rows=(Row("pos", "", _positions("embed")), *_rows("", "")),
    ignored=r"cls_token|mask_token|(norm|fc_norm|head)\.(weight|bias)|decoder_.*",
)


class ViTNames(BackboneNames[ViTConfig]):
    kind = ViTConfig
    title = "ViT"
    signs = r"blocks\.0\.norm1\.weight"

    def table(self, tensors: Tensors, backbone: ViTConfig) -> Table:
        return _TABLE

    def may_lack(self, path: str, found: object) -> bool:
        return "/relative_" in path

    def begins_at(self, path: str) -> Literal["random", "zero", "identity"]:
        return "zero" if "/relative_" in path else "random"

    def made_with(self, tensors: Tensors) -> Conventions:
        return Conventions("rgb")

    def infer(self, shapes: Shapes, norm: NormConfig, source: str | None) -> ViTConfig | None:
        """Return the configuration of a detector's ViT; one by itself does not tell the number of heads."""
        if source is None or "patches/kernel" not in shapes:
            return None
        channels, _, patch, _ = shapes["patches/kernel"]
        _, positions, _ = _shape(shapes, "positions")
        depth = count(shapes, "block")
        if not all(f"block{i + 1}/attention/relative_rows" in shapes for i in range(depth)):
            raise UserError(
                "its ViT has no relative positions, which tell the number of heads; give an experiment with the model"
                " by --config"
            )
        tables = [shapes[f"block{i + 1}/attention/relative_rows"] for i in range(depth)]
        sides = [(length + 1) // 2 for length, _ in tables]
        inside, _ = _shape(shapes, "block1/mlp/expand/kernel")
        return ViTConfig(
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

    def describe(self, backbone: ViTConfig) -> str:
        return f"ViT with {backbone.depth} blocks of {backbone.channels} channels"

    def traits(self, backbone: ViTConfig) -> list[str]:
        return ["layer norm"]

    def assumed(self, backbone: ViTConfig, key: str) -> list[str]:
        share = f"{backbone.drop_path:.0%}"
        return [f"branches of the last block are left out in training for {share} of the images ({key}.drop_path)"]


def _shape(shapes: Shapes, path: str) -> tuple[int, ...]:
    if path not in shapes:
        raise UserError(f"its ViT has no tensor for {path}, so it is no ViTDet that this project knows")
    return shapes[path]
