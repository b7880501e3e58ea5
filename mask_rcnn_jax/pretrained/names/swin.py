"""Names of Swin Transformers: torchvision's, timm's and their authors', and MMDetection's.

All but MMDetection order the four tokens that are merged alike: upper left, lower left, upper right, lower right, each
with its channels. MMDetection's unfolding has the four tokens of the first channel first, and these row by row.
"""

import math
from collections.abc import Iterator

import numpy as np

from mask_rcnn_jax.models import NormConfig, SwinConfig
from mask_rcnn_jax.models.backbones.swin import STAGES
from mask_rcnn_jax.pretrained.names.backbone import BackboneNames, Conventions, Shapes, Tensors, count
from mask_rcnn_jax.pretrained.names.table import CONV, LINEAR, NORM, Layout, Row, Table, same

_POSITIONS: Layout = {"relative_position_bias_table": ("/positions", same)}
_SIZES = {
    ((2, 2, 6, 2), 96): "T",
    ((2, 2, 18, 2), 96): "S",
    ((2, 2, 18, 2), 128): "B",
    ((2, 2, 18, 2), 192): "L",
}


def _of_unfolded(tensor: np.ndarray, side: int) -> np.ndarray:
    """[..., C Y X] of 2x2 tokens to [X Y C, ...]."""
    tokens = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
    return tokens.swapaxes(-1, -3).reshape(tensor.shape).T


_UNFOLDED_LINEAR: Layout = {"weight": ("/kernel", _of_unfolded)}
_UNFOLDED_NORM: Layout = {"weight": ("/scale", _of_unfolded), "bias": ("/bias", _of_unfolded)}


def mmdetection_rows(source: str, target: str) -> tuple[Row, ...]:
    """Rows of MMDetection's names that begin as the pattern `source` says, below the path `target`."""
    merge, place = rf"{source}stages\.(\d)\.downsample", f"{target}stage{{0+2}}/merge"
    return (
        Row(rf"{source}patch_embed\.projection", f"{target}stem/conv", CONV),
        Row(rf"{source}patch_embed\.norm", f"{target}stem/norm", NORM),
        *_block_rows(
            rf"{source}stages\.(\d)\.blocks\.(\d+)",
            f"{target}stage{{0+1}}/block{{1+1}}",
            r"attn\.w_msa",
            (r"ffn\.layers\.0\.0", r"ffn\.layers\.1"),
        ),
        Row(rf"{merge}\.reduction", f"{place}/reduction", _UNFOLDED_LINEAR),
        Row(rf"{merge}\.norm", f"{place}/norm", _UNFOLDED_NORM),
        Row(rf"{source}norm(\d)", f"{target}norm/stage{{0+1}}", NORM),
    )


def _block_rows(block: str, place: str, attention: str, perceptron: tuple[str, str]) -> Iterator[Row]:
    expand, contract = perceptron
    yield Row(rf"{block}\.norm1", f"{place}/attention/norm", NORM)
    yield Row(rf"{block}\.{attention}\.qkv", f"{place}/attention/qkv", LINEAR)
    yield Row(rf"{block}\.{attention}\.proj", f"{place}/attention/out", LINEAR)
    yield Row(rf"{block}\.{attention}", f"{place}/attention", _POSITIONS)
    yield Row(rf"{block}\.norm2", f"{place}/mlp/norm", NORM)
    yield Row(rf"{block}\.{expand}", f"{place}/mlp/expand", LINEAR)
    yield Row(rf"{block}\.{contract}", f"{place}/mlp/contract", LINEAR)


def _torchvision_rows() -> Iterator[Row]:
    yield Row(r"features\.0\.0", "stem/conv", CONV)
    yield Row(r"features\.0\.2", "stem/norm", NORM)
    for i, name in enumerate(STAGES):
        block, place = rf"features\.{2 * i + 1}\.(\d+)", f"{name}/block{{0+1}}"
        yield from _block_rows(block, place, "attn", (r"mlp\.0", r"mlp\.3"))
        if i:
            yield Row(rf"features\.{2 * i}\.(reduction)", f"{name}/merge/{{0}}", LINEAR)
            yield Row(rf"features\.{2 * i}\.(norm)", f"{name}/merge/{{0}}", NORM)


def _timm_rows(first: int) -> Iterator[Row]:
    """The rows of timm and of the authors, who have what leads to a stage in it, or in the stage before."""
    yield Row(r"patch_embed\.proj", "stem/conv", CONV)
    yield Row(r"patch_embed\.norm", "stem/norm", NORM)
    block, place = r"layers\.(\d)\.blocks\.(\d+)", "stage{0+1}/block{1+1}"
    yield from _block_rows(block, place, "attn", (r"mlp\.fc1", r"mlp\.fc2"))
    yield Row(r"layers\.(\d)\.downsample\.(reduction)", f"stage{{0+{first}}}/merge/{{1}}", LINEAR)
    yield Row(r"layers\.(\d)\.downsample\.(norm)", f"stage{{0+{first}}}/merge/{{1}}", NORM)


class SwinNames(BackboneNames[SwinConfig]):
    kind = SwinConfig
    title = "Swin Transformer"
    stages = STAGES
    signs = r"(features\.1|layers\.0\.blocks)\.0\.attn\.relative_position_bias_table"

    def table(self, tensors: Tensors, backbone: SwinConfig) -> Table:
        first = 2 if any(name.startswith("layers.0.downsample.") for name in tensors) else 1
        # The classifier and the norm before it; what is computed from the sizes.
        ignored = r"(head|norm)\..*|.*\.(relative_position_index|attn_mask)"
        return Table((*_torchvision_rows(), *_timm_rows(first)), ignored)

    def may_lack(self, path: str, found: object) -> bool:
        return path.startswith("norm/")  # of features, which only detectors have

    def made_with(self, tensors: Tensors) -> Conventions:
        return Conventions("rgb")

    def infer(self, shapes: Shapes, norm: NormConfig, source: str | None) -> SwinConfig | None:
        positions = [shapes.get(f"{name}/block1/attention/positions") for name in STAGES]
        if "stem/conv/kernel" not in shapes or None in positions:
            return None
        depths: tuple[int, ...] = tuple(count(shapes, f"{name}/block") for name in STAGES)
        heads = tuple(shape[-1] for shape in positions if shape)
        return SwinConfig(
            depths=depths,  # pyright: ignore[reportArgumentType]
            channels=shapes["stem/conv/kernel"][0],
            heads=heads,  # pyright: ignore[reportArgumentType]
            window=(math.isqrt(shapes["stage1/block1/attention/positions"][0]) + 1) // 2,
            shifts_single_windows=source == "mmdetection",
            feature_norms=any(path.startswith("norm/") for path in shapes),
        )

    def describe(self, backbone: SwinConfig) -> str:
        size = _SIZES.get((backbone.depths, backbone.channels))
        blocks = "+".join(map(str, backbone.depths))
        name = f"Swin-{size}" if size else f"Swin of {blocks} blocks and {backbone.channels} channels"
        return name if backbone.window == 7 else f"{name} with windows of {backbone.window}"
