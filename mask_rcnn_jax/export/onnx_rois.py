"""RoIAlign and non-maximum suppression by ONNX's own operations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jaxtyping import Array, Float

from mask_rcnn_jax.export.onnx_graph import Graph, Value
from mask_rcnn_jax.export.onnx_networks import CHANNELS_FIRST
from mask_rcnn_jax.export.onnx_primitives import Form, output
from mask_rcnn_jax.models.pooler import PoolerConfig, RoIPoolerConfig, roi_levels

# RoIAlign of a pyramid, as ONNX has it of a level; it stands in a jaxpr to be translated and never runs in JAX.
_roi_align_p = Primitive("roi_align")


@_roi_align_p.def_abstract_eval
def _roi_align_shape(rois: Any, levels: Any, *features: Any, output_size: int, **_: Any) -> ShapedArray:
    batch, channels = features[0].shape[0], features[0].shape[3]
    return ShapedArray((batch, rois.shape[1], output_size, output_size, channels), features[0].dtype)


def onnx_pool(
    config: RoIPoolerConfig,
    features: Mapping[str, Float[Array, "B _ _ C"]],
    strides: Mapping[str, int],
    rois: Float[Array, "B R 4"],
) -> Float[Array, "B R P P C"]:
    """`models.pooler.pool` by way of ONNX's own RoIAlign: neither form of ours, loop or dense products, is fast there.

    Other poolers are translated as they stand.
    """
    # Of RoIAlign's reductions, ONNX takes the maximum over other values than the references.
    if type(config) is not PoolerConfig or config.reduction == "max":
        return config.pool(features, strides, rois)
    return _roi_align_p.bind(
        rois,
        roi_levels(config, strides, rois),
        *(features[name].astype(jnp.float32) for name in config.features),
        output_size=config.output_size,
        sampling_ratio=config.sampling_ratio,
        scales=tuple(1.0 / strides[name] for name in config.features),
        aligned=config.aligned,
    )


def _roi_align(graph: Graph, eqn: Any, rois: Value, levels: Value, *features: Value) -> list[Value]:
    """Each level pools the RoIs that are its own, which are then brought back to their order."""
    (batch, num_rois), channels = rois.shape[:2], features[0].shape[3]
    (flat,) = graph.add("Reshape", [graph.full(rois), graph.ints([batch * num_rois, 4])])
    (level_of,) = graph.add("Reshape", [graph.full(levels), graph.ints([batch * num_rois])])
    images = graph.ints([row for row in range(batch) for _ in range(num_rois)])
    pooled, places = [], []
    for number, value in enumerate(features):
        if len(features) == 1:
            pooled.append(_roi_align_of_level(graph, eqn, number, value, (flat, images)))
            break
        (here,) = graph.add("Equal", [level_of, graph.constant(np.array(number, levels.dtype))])
        (place,) = graph.add("Reshape", [*graph.add("NonZero", [here]), graph.ints([-1])])
        own = [graph.add("Gather", [name, place], axis=0)[0] for name in (flat, images)]
        pooled.append(_roi_align_of_level(graph, eqn, number, value, own))
        places.append(place)
    (name,) = pooled if len(features) == 1 else graph.add("Concat", pooled, axis=0)
    if places:
        (found,) = graph.add("Concat", places, axis=0)
        rows = graph.ints(range(batch * num_rois))
        (back,) = graph.add("ScatterElements", [rows, found, rows], axis=0)
        (name,) = graph.add("Gather", [name, back], axis=0)
    side = eqn.params["output_size"]
    (name,) = graph.add("Reshape", [name, graph.ints([batch, num_rois, channels, side, side])])
    return [output(eqn, name, order=(0, 1, 4, 2, 3))]


def _roi_align_of_level(graph: Graph, eqn: Any, number: int, features: Value, rois: Sequence[str]) -> str:
    """Pool RoIs and their images from one level; channels come first."""
    params = eqn.params
    (pooled,) = graph.add(
        "RoiAlign",
        [graph.ordered(graph.whole(features), CHANNELS_FIRST), *rois],
        output_height=params["output_size"],
        output_width=params["output_size"],
        sampling_ratio=params["sampling_ratio"],
        spatial_scale=params["scales"][number],
        coordinate_transformation_mode="half_pixel" if params["aligned"] else "output_half_pixel",
    )
    return pooled


def _greedy_nms(graph: Graph, eqn: Any, boxes: Value, alive: Value, threshold: Value, *classes: Value) -> list[Value]:
    """The call of `ops.nms.greedy_nms` by ONNX's own NMS, whose scores are the places of the boxes in their order."""
    (*lead, number), batch = eqn.outvars[0].aval.shape, math.prod(eqn.outvars[0].aval.shape[:-1])
    sides = [batch, 1, number]
    corners = _of_shape(graph, boxes, [*lead, number, 4], [batch, number, 4])
    candidates = _of_shape(graph, alive, [*lead, number], sides)
    if classes:
        of_class = _of_shape(graph, classes[0], [*lead, number], sides)
        zero, one = (graph.constant(np.array(x, classes[0].dtype)) for x in (0, 1))
        (highest,) = graph.add("ReduceMax", [of_class], keepdims=0)
        (every,) = graph.add("Range", [zero, *graph.add("Add", [highest, one]), one])
        (every,) = graph.add("Reshape", [every, graph.ints([1, -1, 1])])
        (candidates,) = graph.add("And", [candidates, *graph.add("Equal", [of_class, every])])
    places = graph.constant(np.arange(number, 0, -1, dtype=np.float32))
    (scores,) = graph.add("Where", [candidates, places, graph.constant(np.array(0, np.float32))])
    limits = [graph.ints([number]), graph.full(threshold), graph.constant(np.array(0, np.float32))]
    (selected,) = graph.add("NonMaxSuppression", [corners, scores, *limits])  # rows of image, class, box
    (kept,) = graph.add("Gather", [selected, graph.ints([0, 2])], axis=1)
    (length,) = graph.add("Shape", [selected], end=1)
    (ones,) = graph.add("Expand", [graph.constant(np.array(1, np.int32)), length])
    (kept,) = graph.add("ScatterND", [graph.constant(np.zeros((batch, number), np.int32)), kept, ones])
    (kept,) = graph.add("Reshape", [graph.cast(kept, bool), graph.ints([*lead, number])])
    return [output(eqn, kept)]


def _of_shape(graph: Graph, value: Value, shape: Sequence[int], sides: Sequence[int]) -> str:
    """Broadcast an array, which may lack leading axes, and give it other sides."""
    name = graph.full(value)
    if value.shape != tuple(shape):
        (name,) = graph.add("Expand", [name, graph.ints(shape)])
    return graph.add("Reshape", [name, graph.ints(sides)])[0]


ROI_FORMS: dict[str, Form] = {"roi_align": _roi_align}
ROI_CALLS: dict[str, Form] = {"greedy_nms": _greedy_nms}
