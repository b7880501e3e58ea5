"""Parameters and operations of the members of the family, as docs/family.md has them.

`python -m benchmarks.family` prints a line for each: trained and frozen parameters, and the multiplications and
additions of products and convolutions in detection, of one image of 800x1344. Nothing is compiled or computed.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from mask_rcnn_jax.models import (
    ConvNeXtConfig,
    FPNConfig,
    MaskRCNNConfig,
    ResNetConfig,
    SwinConfig,
    VGGConfig,
    ViTConfig,
    abstract,
    architectures,
    detect,
)
from mask_rcnn_jax.structures import Proposals

SIZE = (800, 1344)


def members() -> dict[str, MaskRCNNConfig]:
    """The members by the name that docs/family.md gives them."""
    r50 = MaskRCNNConfig()
    r101 = replace(r50, backbone=FPNConfig(ResNetConfig(depth=101)))
    vit_l = ViTConfig(channels=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23), drop_path=0.4)
    x101 = replace(r50, backbone=FPNConfig(ResNetConfig(depth=101, groups=32, width_per_group=8)))
    return {
        "R-CNN VGG-16": architectures.rcnn(VGGConfig()),
        "Fast R-CNN R50-FPN": architectures.fast_rcnn(r50),
        "Faster R-CNN VGG-16": architectures.vgg(VGGConfig()),
        "Faster R-CNN R50-C4": replace(architectures.c4(ResNetConfig()), mask_head=None),
        "Faster R-CNN R50-FPN": replace(r50, mask_head=None),
        "Mask R-CNN R50-C4": architectures.c4(ResNetConfig()),
        "Mask R-CNN R50-C5": architectures.c5(ResNetConfig()),
        "Mask R-CNN R50-DC5": architectures.dc5(ResNetConfig()),
        "Mask R-CNN R50-FPN": r50,
        "Mask R-CNN R101-FPN": r101,
        "Mask R-CNN X101-FPN": x101,
        "Mask R-CNN ConvNeXt-T-FPN": replace(r50, backbone=FPNConfig(ConvNeXtConfig())),
        "Mask R-CNN Swin-T-FPN": replace(r50, backbone=FPNConfig(SwinConfig())),
        "Mask R-CNN ViTDet-B": architectures.vitdet(ViTConfig()),
        "Mask R-CNN ViTDet-L": architectures.vitdet(vit_l),
        "Cascade Mask R-CNN R50-FPN": architectures.cascade(r50),
        "Keypoint R-CNN R50-FPN": architectures.keypoints(r50),
        "PointRend R50-FPN": architectures.point_rend(r50),
        "Panoptic FPN R50": architectures.panoptic_fpn(r50),
    }


def parameters(config: MaskRCNNConfig) -> tuple[int, int]:
    """Count a model's trained parameters and its frozen ones, the statistics of norms among these."""
    variables = abstract(config)
    counts = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for part in (variables.params, variables.buffers)
    )
    trained, frozen = counts
    return trained, frozen


def operations(config: MaskRCNNConfig) -> int:
    """Count multiplications and additions of products and convolutions in the detection of one image."""
    images, sizes = jnp.zeros((1, *SIZE, 3), jnp.uint8), jnp.array([SIZE], jnp.int32)
    given = Proposals(jnp.zeros((1, 1000, 4)), jnp.zeros((1, 1000)), jnp.zeros((1, 1000), bool))
    traced = jax.make_jaxpr(lambda variables: detect(config, variables, images, sizes, proposals=given))(
        abstract(config)
    )
    return _of_jaxpr(traced.jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        channels_out = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // channels_out
    if name == "cond":
        counts = [_of_jaxpr(branch.jaxpr) for branch in params["branches"]]
        # Of forms for several devices the cheapest; RoIs that may be left out count as if all were there.
        return min(counts) if params.get("branches_platforms") else max(counts)
    times = params["length"] if name == "scan" else 1
    return times * sum(map(_of_jaxpr, _inner(params)))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "eqns"):
                yield one
            elif hasattr(one, "jaxpr") and hasattr(one.jaxpr, "eqns"):
                yield one.jaxpr


def main() -> None:
    """Print the table."""
    print("| member | trained | frozen | GFLOP |\n|---|---|---|---|")
    for name, config in members().items():
        trained, frozen = parameters(config)
        print(f"| {name} | {trained / 1e6:.1f} M | {frozen / 1e6:.2f} M | {operations(config) / 1e9:.0f} |")


if __name__ == "__main__":
    main()
