"""The configuration of a whole model, its networks, and their variables.

Shape letters: `B` images, `R` RoIs an image, `P` side of the pooled grid, `C` channels.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.backbones.base import BackboneConfig, Feature, is_power_of_two
from mask_rcnn_jax.models.backbones.fpn import FPNConfig
from mask_rcnn_jax.models.backbones.resnet import ResNetConfig
from mask_rcnn_jax.models.checks import check_network
from mask_rcnn_jax.models.context import Inputs
from mask_rcnn_jax.models.heads.base import Head, HeadConfig
from mask_rcnn_jax.models.heads.box import BoxHead, BoxHeadConfig
from mask_rcnn_jax.models.heads.cascade import CascadeConfig
from mask_rcnn_jax.models.heads.keypoint import KeypointHeadConfig
from mask_rcnn_jax.models.heads.mask import MaskBranchConfig, MaskHeadConfig
from mask_rcnn_jax.models.layers.norms import NormConfig, freeze
from mask_rcnn_jax.models.pooler import Pool, RoIPoolerConfig, pool
from mask_rcnn_jax.models.proposals.base import ProposalsConfig, ProposalSource
from mask_rcnn_jax.models.proposals.rpn import RPNConfig
from mask_rcnn_jax.ops.masks import PasteConvention
from mask_rcnn_jax.ranges import AboveZero, AddedLater, Range

Arrays = dict[str, Any]  # nested dicts with arrays at the leaves
_PARTS = ("backbone", "rpn", "res5", "trunk", "box_head", "cascade", "mask_head", "keypoint_head", "head_names")

_POOLED_AT_ONCE = 2**21  # cells of RoIs that a trunk is applied to: 41 crops of 224x224

Pixel = Annotated[float, Range(-1000, 1000)]


@dataclass(frozen=True)
class MaskRCNNConfig:
    """The whole model. Defaults are Detectron2's R50-FPN; without a mask head it is Faster R-CNN."""

    num_classes: Annotated[int, Range(1, 100_000)] = 80
    backbone: BackboneConfig = FPNConfig()
    rpn: ProposalsConfig = RPNConfig()  # where proposals come from
    box_head: BoxHeadConfig = BoxHeadConfig()
    cascade: CascadeConfig | None = None  # further box heads after the first
    mask_head: MaskBranchConfig | None = MaskHeadConfig()
    keypoint_head: KeypointHeadConfig | None = None
    heads: Annotated[tuple[HeadConfig, ...], AddedLater()] = ()  # others, each of a name of its own
    res5_on_rois: bool = False  # C4: the backbone ends at res4, and its res5 is applied to each RoI before the heads
    trunk: Annotated[BackboneConfig | None, AddedLater()] = None  # R-CNN: applied to each pooled RoI before the heads
    freeze: Annotated[tuple[str, ...], AddedLater()] = ()  # parts that are not trained, such as trunk or box_head/fc1
    pixel_mean: tuple[Pixel, Pixel, Pixel] = (123.675, 116.28, 103.53)  # RGB, of values 0..255
    pixel_std: tuple[AboveZero, AboveZero, AboveZero] = (1.0, 1.0, 1.0)
    channel_order: Literal["bgr", "rgb"] = "bgr"  # in which the backbone was trained; images are RGB always
    # Networks that keep no intermediate values for their gradients and are computed again instead: less memory, about
    # a third more work where it is all of them.
    remat: tuple[str, ...] = ()  # backbone, rpn, trunk, box_head, and names of heads
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of the networks; the rest is never below float32

    def __post_init__(self) -> None:
        for name, stride in self.backbone.out_strides.items():
            if not is_power_of_two(stride):
                raise ValueError(f"strides of backbones are powers of 2, and that of {name} is {stride}")
        _check_names(self)
        if self.trunk is not None:
            _check_trunk(self, self.trunk)
        parts = {"rpn": self.rpn, "box_head": self.box_head, "mask_head": self.mask_head}
        parts |= {"keypoint_head": self.keypoint_head} | {f"heads[{i}]": head for i, head in enumerate(self.heads)}
        for key, part in parts.items():
            try:
                if part is not None:
                    part.check(self.inputs)
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
        if self.cascade is not None and not self.box_head.class_agnostic:
            raise ValueError("a cascade refines one box a RoI: set box_head.class_agnostic")
        if self.cascade is not None and self.box_head.class_loss == "hinge":
            raise ValueError("the hinge loss counts the RoIs of one box head: set cascade to none")
        if self.res5_on_rois and (not isinstance(self.backbone, ResNetConfig) or "res5" in self.backbone.out_features):
            raise ValueError("res5_on_rois needs a ResNet backbone whose out_features end at res4")
        if isinstance(self.resnet_of_rois, ResNetConfig) and self.resnet_of_rois.norm.kind == "batch_norm":
            raise ValueError("res5_on_rois takes no batch norm: RoIs that are padding would enter its statistics")

    @property
    def resnet_of_rois(self) -> ResNetConfig | None:
        """The ResNet whose last stage is applied to RoIs (C4)."""
        return self.backbone if self.res5_on_rois and isinstance(self.backbone, ResNetConfig) else None

    @property
    def inputs(self) -> Inputs:
        """Return what the stages after the backbone are built for."""
        res5, of_pooled = self.resnet_of_rois, None
        if res5 is not None:
            of_pooled = Feature(res5.stage_channels("res5"), 2)
        elif self.trunk is not None:
            (of_pooled,) = self.trunk.features.values()
        return Inputs(self.backbone.features, self.num_classes, of_pooled)

    @property
    def all_heads(self) -> dict[str, HeadConfig]:
        """The heads after the box heads by name, in the order in which they add to what was found."""
        return {head.name: head for head in (self.mask_head, self.keypoint_head, *self.heads) if head is not None}

    @property
    def paste(self) -> PasteConvention:
        """Return how masks are resized to their boxes."""
        return "detectron2" if self.mask_head is None else self.mask_head.paste

    @property
    def box_stages(self) -> tuple[BoxHeadConfig, ...]:
        """The configuration of each box head: one, or those of the cascade."""
        return (self.box_head,) if self.cascade is None else self.cascade.stages(self.box_head)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Variables:
    """All that a model has learnt, in nested dicts: `params` are trained, `buffers` (frozen weights, norms) are not."""

    params: Arrays
    buffers: Arrays


class MaskRCNN(nnx.Module):
    """The networks of a configuration; `rcnn.py` says what happens between them."""

    def __init__(self, config: MaskRCNNConfig, *, rngs: nnx.Rngs):
        inputs = config.inputs
        self.backbone = check_network(config.backbone, config.backbone.build(rngs))
        self.rpn = check_network(config.rpn, config.rpn.build(inputs, rngs), ProposalSource)
        self.res5 = config.resnet_of_rois and config.resnet_of_rois.build_res5(rngs)
        self.trunk = config.trunk and check_network(config.trunk, config.trunk.build(rngs))
        self.box_head = config.box_head.build(inputs, rngs)
        self.cascade = config.cascade and config.cascade.build(config.box_head, inputs, rngs)
        self.head_names = tuple(config.all_heads)
        for name, head in config.all_heads.items():
            setattr(self, name, check_network(head, head.build(inputs, rngs), Head))
        for path in config.freeze:
            freeze(self._part(path))

    def _part(self, path: str) -> nnx.Module:
        """Return the part of this path, as checkpoints name it. Raises UserError where there is none."""
        part: Any = self
        for name in path.split("/"):
            part = getattr(part, name, None)
        if not isinstance(part, nnx.Module):
            raise UserError(f"freeze: the model has no part {path}; name parts such as backbone or box_head/fc1")
        return part

    @property
    def heads(self) -> dict[str, Head]:
        """The heads after the box heads by name."""
        return {name: getattr(self, name) for name in self.head_names}

    @property
    def box_heads(self) -> tuple[BoxHead, ...]:
        """The box head, and the further ones of a cascade."""
        return (self.box_head, *(self.cascade.heads if self.cascade else ()))

    def roi_features(
        self,
        config: MaskRCNNConfig,
        pooler: RoIPoolerConfig,
        features: Mapping[str, Float[Array, "B _ _ _"]],
        boxes: Float[Array, "B R 4"],
        pool: Pool = pool,
    ) -> Float[Array, "B R P P C"]:
        """Compute the heads' input per RoI: pooled features, or what res5 (C4) or the trunk (R-CNN) makes of them."""
        if config.trunk is not None:
            of_boxes = functools.partial(pool, pooler, features, config.backbone.out_strides)
            return self._through_trunk(config.trunk, pooler.output_size, of_boxes, boxes)
        pooled = pool(pooler, features, config.backbone.out_strides, boxes)
        if self.res5 is None:
            return pooled
        with jax.named_scope("res5"):
            flat = self.res5(pooled.reshape(-1, *pooled.shape[2:]))
        return flat.reshape(*pooled.shape[:2], *flat.shape[1:])

    def _through_trunk(
        self,
        trunk: BackboneConfig,
        side: int,
        pool: Callable[[Float[Array, "B _ 4"]], Float[Array, "B _ P P C"]],
        boxes: Float[Array, "B R 4"],
    ) -> Float[Array, "B R _ _ _"]:
        """Pool some RoIs at a time to `side` x `side` cells, and apply the trunk: all crops are never there at once."""

        @jax.named_scope("trunk")
        def features_of(boxes: Float[Array, "B r 4"]) -> Float[Array, "B r _ _ _"]:
            pooled = pool(boxes)
            (made,) = trunk.apply(self.trunk, pooled.reshape(-1, *pooled.shape[2:]), None).values()
            return made.reshape(*pooled.shape[:2], *made.shape[1:])

        batch, rois = boxes.shape[:2]
        size = max(1, min(rois, _POOLED_AT_ONCE // (batch * side**2)))
        count = -(-rois // size)
        padded = jnp.pad(boxes, ((0, 0), (0, count * size - rois), (0, 0)))
        made = jax.lax.map(features_of, padded.reshape(batch, count, size, 4).swapaxes(0, 1))
        return made.swapaxes(0, 1).reshape(batch, count * size, *made.shape[3:])[:, :rois]


def _check_trunk(config: MaskRCNNConfig, trunk: BackboneConfig) -> None:
    """Raise ValueError where pooled RoIs are nothing that the trunk could be applied to."""
    name = type(trunk).__name__
    if config.res5_on_rois:
        raise ValueError("res5_on_rois applies res5 to RoIs: set it to false, or trunk to none")
    if len(trunk.features) != 1:
        raise ValueError(f"trunk.out_features: heads take one feature of {name}, not {', '.join(trunk.features)}")
    if trunk.draws:
        raise ValueError(f"trunk draws nothing at random, which {name} does in training: set its drop_path to 0")
    norm = getattr(trunk, "norm", None)
    if isinstance(norm, NormConfig) and norm.kind == "batch_norm":
        raise ValueError("trunk takes no batch norm: RoIs that are padding would enter its statistics")
    for key, head in {"box_head": config.box_head, **config.all_heads}.items():
        pooler = getattr(head, "pooler", None)
        if not isinstance(pooler, RoIPoolerConfig):
            continue
        pooled = config.backbone.features.get(pooler.features[0])
        if pooled is not None and pooled.channels != 3:
            raise ValueError(f"trunk is applied to what has 3 channels: set {key}.pooler.features to those of an image")
        if pooler.output_size % trunk.size_divisor:
            raise ValueError(f"{key}.pooler.output_size must be a multiple of {trunk.size_divisor}, as {name} asks")


def _check_names(config: MaskRCNNConfig) -> None:
    """Raise ValueError where heads are not what they should be or share a name, or `remat` names what there is not."""
    if not isinstance(config.heads, tuple) or not all(isinstance(head, HeadConfig) for head in config.heads):
        raise ValueError(f"heads is a tuple of configurations of heads, such as (FillConfig(),), not {config.heads!r}")
    names: dict[str, str] = {}
    for head in config.heads:
        own, name = type(head).__name__, getattr(head, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f'heads: {own} has no name; give it one, name: ClassVar[str] = "..."')
        if name in _PARTS or hasattr(MaskRCNN, name):
            raise ValueError(f"heads: the name of {own}, {name}, is that of another part of the model; give it another")
        if name in names:
            raise ValueError(f"heads: {names[name]} and {own} are both named {name}; give one another name")
        if head.needs not in (None, "masks", "keypoints", "semantic"):
            raise ValueError(
                f"heads: {own}.needs is {head.needs!r}, and may be 'masks', 'keypoints', 'semantic' or None"
            )
        names[name] = own
    parts = ("backbone", "rpn", "trunk", "box_head", "mask_head", "keypoint_head", *names)
    if unknown := [name for name in config.remat if name not in parts]:
        raise ValueError(f"remat: expected some of {', '.join(parts)}, not {', '.join(unknown)}")


def init(config: MaskRCNNConfig, key: Key[Array, ""]) -> Variables:
    """Random variables; every layer as Detectron2 initialises it."""
    _, params, buffers = nnx.split(MaskRCNN(config, rngs=nnx.Rngs(key)), nnx.Param, ...)
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(buffers))


def abstract(config: MaskRCNNConfig) -> Variables:
    """The shapes and types of what `init` draws, as `jax.ShapeDtypeStruct`, without drawing it."""
    _, params, buffers = nnx.split(_undrawn(config), nnx.Param, ...)
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(buffers))


def networks(config: MaskRCNNConfig, variables: Variables, *, train: bool = False) -> MaskRCNN:
    """The networks with these variables. With `train` batch norms take the batch's statistics and move their own."""
    return nnx.merge(_structure(config, train), variables.params, variables.buffers)


@functools.cache
def _structure(config: MaskRCNNConfig, train: bool) -> nnx.GraphDef[MaskRCNN]:
    model = nnx.clone(_undrawn(config))
    model.set_attributes(use_running_average=not train, raise_if_not_found=False)
    # Parameters stay float32; each layer casts them, and gradients come back in float32.
    model.set_attributes(dtype=jnp.dtype(config.dtype), raise_if_not_found=False)
    for name in config.remat if train else ():
        parts = model.box_heads if name == "box_head" else filter(None, [getattr(model, name, None)])
        for part in parts:
            part.set_attributes(recomputed=True, raise_if_not_found=False)
    return nnx.graphdef(model)


@functools.lru_cache(maxsize=32)
def _undrawn(config: MaskRCNNConfig) -> MaskRCNN:
    """The networks with shapes in place of variables. Tracing their random numbers takes a second, once."""
    return nnx.eval_shape(lambda: MaskRCNN(config, rngs=nnx.Rngs(0)))
