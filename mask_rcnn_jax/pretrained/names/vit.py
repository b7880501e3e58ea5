"""Names of plain vision transformers, those of MAE and of Detectron2's ViTDet, and of ViTDet's simple pyramid."""

import math

import numpy as np

from mask_rcnn_jax.pretrained.names.table import CONV, DECONV, LINEAR, NORM, Layout, Row, Table, same


def _grid(tensor: np.ndarray, side: int) -> np.ndarray:
    """[1, tokens, C] to [G, G, C], without the position of a class token, which comes first."""
    tokens = tensor.reshape(-1, tensor.shape[-1])
    grid = math.isqrt(len(tokens))
    return tokens[len(tokens) - grid**2 :].reshape(grid, grid, -1)


_RELATIVE: Layout = {"rel_pos_h": ("/relative_rows", same), "rel_pos_w": ("/relative_columns", same)}


def _positions(last: str) -> Layout:
    return {last: ("/positions", _grid)}


def _rows(source: str, target: str) -> tuple[Row, ...]:
    """Rows of a ViT whose names begin as the pattern `source` says, below the path `target`, without its positions."""
    block, place = rf"{source}blocks\.(\d+)\.", f"{target}/block{{0+1}}"
    return (
        Row(rf"{source}patch_embed\.proj", f"{target}/patches", CONV),
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
    Row(r"backbone\.net", "backbone/bottom_up", _positions("pos_embed")),
    *_rows(r"backbone\.net\.", "backbone/bottom_up"),
    *_level_rows(2, {0: ("deconv1", DECONV), 1: ("norm", NORM), 3: ("deconv2", DECONV)}, 4),
    *_level_rows(3, {0: ("deconv1", DECONV)}, 1),
    *_level_rows(4, {}, 0),
    *_level_rows(5, {}, 1),  # after a pool
)


def table(target: str) -> Table:
    """Return the table of a ViT that was trained by itself and lies here below the path `target`.

    Left out are a classifier and its norm, the class token, and what MAE reconstructs images with.
    """
    ignored = r"cls_token|mask_token|(norm|fc_norm|head)\.(weight|bias)|decoder_.*"
    # The name pos_embed has no dot, and so is divided like Caffe2's.
    return Table((Row("pos", target, _positions("embed")), *_rows("", target)), ignored)
