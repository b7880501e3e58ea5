"""The programs that are planned, lowered for devices that are only described.

Their inputs are shapes and types, as the loaders yield them and as training and evaluation place them on a mesh.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.inference.batched import detection_program
from mask_rcnn_jax.models import MaskRCNNConfig, abstract, detect
from mask_rcnn_jax.sharding import by_rows, everywhere
from mask_rcnn_jax.structures import Batch, GroundTruth, Proposals
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import init_state, make_train_step

What = Literal["train", "detect"]


def lowered(config: ExperimentConfig, mesh: Mesh, what: What, size: tuple[int, int]) -> jax.stages.Lowered:
    """Lower the step, or detection, of `config.batch_size` images of `size` (height, width), shared by the mesh."""
    inputs = _placed(abstract_batch(config, size), by_rows(mesh))
    if what == "train":
        return make_train_step(config, mesh).lower(_placed(abstract_state(config), everywhere(mesh)), inputs)
    variables = _placed(abstract(config.model), everywhere(mesh))
    given = () if inputs.proposals is None else (inputs.proposals,)
    program: Any = detection_program(detect, config.model, mesh, bool(given))
    return program.lower(variables, inputs.images, inputs.image_sizes, *given)


def abstract_state(config: ExperimentConfig) -> Any:
    """Return the shapes and types of the state before the first step."""
    return jax.eval_shape(lambda: init_state(config))


def abstract_batch(config: ExperimentConfig, size: tuple[int, int]) -> Batch:
    """Return the shapes and types of a batch of images of `size` (height, width), with all that the model learns from.

    Proposals are there where `data.proposals` says how many.
    """
    rows, data = config.batch_size, config.data

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    pixels = jnp.uint8 if data.resize == "detectron2" else jnp.float32
    proposals = None
    if data.proposals is not None:
        slots = data.proposals.slots
        proposals = Proposals(array(slots, 4), array(slots), array(slots, dtype=bool))
    return Batch(
        images=array(*size, 3, dtype=pixels),
        image_sizes=array(2, dtype=jnp.int32),
        ground_truth=_ground_truth(config.model, data, size, array),
        example_index=array(dtype=jnp.int32),
        proposals=proposals,
    )


def _ground_truth(model: MaskRCNNConfig, data: DataConfig, size: tuple[int, int], array: Any) -> GroundTruth:
    slots, crop = data.max_instances, data.mask_crop
    labelled = any(head.needs == "semantic" for head in model.all_heads.values())
    keypoints = None if model.keypoint_head is None else array(slots, model.keypoint_head.num_keypoints, 3)
    return GroundTruth(
        boxes=array(slots, 4),
        classes=array(slots, dtype=jnp.int32),
        masks=array(slots, crop, crop, dtype=jnp.uint8),
        valid=array(slots, dtype=bool),
        keypoints=keypoints,
        semantic=array(*size, dtype=jnp.uint8) if labelled else None,
    )


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
