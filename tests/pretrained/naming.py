"""Detectron2's names written down a second time, from this project's paths: what the tables must undo."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from mask_rcnn_jax.models import MaskRCNNConfig, Variables, abstract

_LAYERS = (
    (r"(?:backbone/bottom_up|backbone)/stem/conv", "{stem}.stem.conv1"),
    (r"(?:backbone/bottom_up|backbone)/stem/norm", "{stem}.stem.conv1.norm"),
    (r"(?:backbone/bottom_up|backbone)/(res\d)/block(\d+)/(\w+)/conv", "{stem}.{0}.{1-1}.{2}"),
    (r"(?:backbone/bottom_up|backbone)/(res\d)/block(\d+)/(\w+)/norm", "{stem}.{0}.{1-1}.{2}.norm"),
    (r"res5/block(\d)/(\w+)/conv", "roi_heads.res5.{0-1}.{1}"),
    (r"res5/block(\d)/(\w+)/norm", "roi_heads.res5.{0-1}.{1}.norm"),
    (r"backbone/(lateral|output)(\d)/conv", "backbone.fpn_{0}{1}"),
    (r"backbone/(lateral|output)(\d)/norm", "backbone.fpn_{0}{1}.norm"),
    (r"backbone/bottom_up", "backbone.net"),
    (r"backbone/bottom_up/patches", "backbone.net.patch_embed.proj"),
    (r"backbone/bottom_up/block(\d+)/attention/norm", "backbone.net.blocks.{0-1}.norm1"),
    (r"backbone/bottom_up/block(\d+)/attention/qkv", "backbone.net.blocks.{0-1}.attn.qkv"),
    (r"backbone/bottom_up/block(\d+)/attention/out", "backbone.net.blocks.{0-1}.attn.proj"),
    (r"backbone/bottom_up/block(\d+)/attention", "backbone.net.blocks.{0-1}.attn"),
    (r"backbone/bottom_up/block(\d+)/mlp/norm", "backbone.net.blocks.{0-1}.norm2"),
    (r"backbone/bottom_up/block(\d+)/mlp/expand", "backbone.net.blocks.{0-1}.mlp.fc1"),
    (r"backbone/bottom_up/block(\d+)/mlp/contract", "backbone.net.blocks.{0-1}.mlp.fc2"),
    (r"backbone/p(\d)/deconv1", "backbone.simfp_{0}.0"),
    (r"backbone/p2/norm", "backbone.simfp_2.1"),
    (r"backbone/p2/deconv2", "backbone.simfp_2.3"),
    *(
        (rf"backbone/p{level}/{layer}/{part}", f"backbone.simfp_{level}.{first + after}{norm}")
        for level, first in ((2, 4), (3, 1), (4, 0), (5, 1))
        for after, layer in enumerate(("lateral", "output"))
        for part, norm in (("conv", ""), ("norm", ".norm"))
    ),
    (r"rpn/conv(\d)/conv", "proposal_generator.rpn_head.conv{rpn0}"),
    (r"rpn/objectness/conv", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn/deltas/conv", "proposal_generator.rpn_head.anchor_deltas"),
    (r"box_head/conv(\d)/conv", "roi_heads.box_head{stage}.conv{0}"),
    (r"box_head/conv(\d)/norm", "roi_heads.box_head{stage}.conv{0}.norm"),
    (r"box_head/fc(\d)", "roi_heads.box_head{stage}.fc{0}"),
    (r"box_head/class_logits", "roi_heads.box_predictor{stage}.cls_score"),
    (r"box_head/box_deltas", "roi_heads.box_predictor{stage}.bbox_pred"),
    (r"cascade/stage(\d)/conv(\d)/conv", "roi_heads.box_head.{0-1}.conv{1}"),
    (r"cascade/stage(\d)/conv(\d)/norm", "roi_heads.box_head.{0-1}.conv{1}.norm"),
    (r"cascade/stage(\d)/fc(\d)", "roi_heads.box_head.{0-1}.fc{1}"),
    (r"cascade/stage(\d)/class_logits", "roi_heads.box_predictor.{0-1}.cls_score"),
    (r"cascade/stage(\d)/box_deltas", "roi_heads.box_predictor.{0-1}.bbox_pred"),
    (r"mask_head/conv(\d)/conv", "roi_heads.mask_head.mask_fcn{0}"),
    (r"mask_head/conv(\d)/norm", "roi_heads.mask_head.mask_fcn{0}.norm"),
    (r"mask_head/deconv", "roi_heads.mask_head.deconv"),
    (r"mask_head/predictor", "roi_heads.mask_head.predictor"),
    (r"mask_head/coarse_head/reduce_channels", "roi_heads.mask_head.coarse_head.reduce_channel_dim_conv"),
    (r"mask_head/coarse_head/reduce_sides", "roi_heads.mask_head.coarse_head.reduce_spatial_dim_conv"),
    (r"mask_head/(coarse|point)_head/(fc\d|prediction|predictor)", "roi_heads.mask_head.{0}_head.{1}"),
    (r"semantic_head/(p\d)_conv(\d)/conv", "sem_seg_head.{0}.{twice 1-1}"),
    (r"semantic_head/(p\d)_conv(\d)/norm", "sem_seg_head.{0}.{twice 1-1}.norm"),
    (r"semantic_head/predictor", "sem_seg_head.predictor"),
    (r"keypoint_head/conv(\d)/conv", "roi_heads.keypoint_head.conv_fcn{0}"),
    (r"keypoint_head/deconv", "roi_heads.keypoint_head.score_lowres"),
)
_LAST = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "positions": "pos_embed",
    "relative_rows": "rel_pos_h",
    "relative_columns": "rel_pos_w",
}


def flat(variables: Variables) -> dict[str, np.ndarray]:
    """Every leaf by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for tree in (variables.params, variables.buffers)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def random_variables(config: MaskRCNNConfig, seed: int = 0) -> Variables:
    """Variables of the model's shapes in which no two values are alike."""
    random = np.random.default_rng(seed)
    shapes = abstract(config)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


def as_detectron2(variables: Variables, side: int = 7) -> dict[str, np.ndarray]:
    """The state dict that a Detectron2 model with these variables has; `side` is that of the box head's features."""
    leaves = flat(variables)
    return {_name(path, leaves): _in_torch(path, leaf, side) for path, leaf in leaves.items()}


def _name(path: str, leaves: Mapping[str, np.ndarray]) -> str:
    layer, last = filter(None, re.fullmatch(r"(.*)/(relative_\w+)|(.*)[/_](\w+)", path).groups())
    words = {
        "stem": "backbone.bottom_up" if path.startswith("backbone/bottom_up") else "backbone",
        "stage": ".0" if any(name.startswith("cascade") for name in leaves) else "",
    }
    for pattern, name in _LAYERS:
        if match := re.fullmatch(pattern, layer):
            groups = match.groups()
            numbers = {f"{i}-1": int(group) - 1 for i, group in enumerate(groups) if group.isdigit()}
            numbers |= {f"twice {key}": 2 * number for key, number in numbers.items()}
            if "{rpn0}" in name:
                words["rpn0"] = f".conv{int(groups[0]) - 1}" if "rpn/conv2/conv/kernel" in leaves else ""
            for key, value in (words | numbers).items():
                name = name.replace(f"{{{key}}}", str(value))
            return f"{name.format(*groups)}.{_LAST[last]}"
    raise AssertionError(f"no name for {path}")


def _in_torch(path: str, leaf: np.ndarray, side: int) -> np.ndarray:
    if path.endswith("/positions"):
        return np.concatenate([np.full((1, leaf.shape[-1]), 7), leaf.reshape(-1, leaf.shape[-1])])[None]
    if "/relative_" in path:
        return leaf
    if re.search(r"deconv\d?/kernel$", path):
        return leaf.transpose(2, 3, 0, 1)
    if re.fullmatch(r"mask_head/point_head/.*kernel", path):
        return leaf.T[:, :, None]
    if path.endswith("predictor_kernel"):
        return leaf.T[:, :, None, None]
    if re.fullmatch(r"(box_head|cascade/stage\d|mask_head/coarse_head)/fc1/kernel", path):
        # One weight for each cell (y, x) and channel of the features.
        grid = leaf.reshape(side, side, -1, leaf.shape[1])
        return np.stack([grid[..., out].transpose(2, 0, 1).ravel() for out in range(leaf.shape[1])])
    if leaf.ndim == 4:
        return leaf.transpose(3, 2, 0, 1)
    return leaf.T
