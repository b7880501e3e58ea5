"""The state that a run starts from, and the weights in it."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mask_rcnn_jax import processes
from mask_rcnn_jax.config import differences
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.disk.places import latest_step
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import Variables, detect, init
from mask_rcnn_jax.pretrained import ByName, contradictions, conventions, load_weights, match, match_kinds, transplant
from mask_rcnn_jax.sharding import everywhere
from mask_rcnn_jax.structures import PaddedDetections, Proposals
from mask_rcnn_jax.training.checkpoint import Metadata, restore_for_inference
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.step import TrainState, init_state, replicate


def check_heads(config: ExperimentConfig) -> None:
    """Raise UserError where what further heads lay into detections has no row, place or name of its own.

    Nothing is computed, the shapes tell; else the first evaluation would, after hours.
    """
    if not config.model.heads:
        return

    def found() -> PaddedDetections:
        given = Proposals(jnp.zeros((2, 8, 4)), jnp.zeros((2, 8)), jnp.zeros((2, 8), bool))
        images, sizes = jnp.zeros((2, *config.data.canvas, 3), jnp.uint8), jnp.ones((2, 2), jnp.int32)
        return detect(config.model, init(config.model, jax.random.key(0)), images, sizes, proposals=given)

    jax.eval_shape(found)


def first_state(config: ExperimentConfig, workdir: Path, mesh: Mesh, names: Metadata) -> tuple[TrainState, list[str]]:
    """The state before the first step, on every device; of a run with a checkpoint in `workdir` its shapes only.

    Such a run is resumed with what the checkpoint holds: it needs neither random weights nor those that
    `config.pretrained` names. Also what is to be said of those. Raises UserError where they do not fit the model.
    """
    if processes.by_first(lambda: latest_step(workdir)) is not None:
        shapes = jax.eval_shape(lambda: init_state(config))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere(mesh)), shapes), []
    variables, told = first_variables(config, names)
    return replicate(init_state(config, variables), mesh), told


def first_variables(config: ExperimentConfig, names: Metadata) -> tuple[Variables, list[str]]:
    """Random variables drawn from the seed, with the weights that `config.pretrained` names in place of them.

    `names` has those of the data; predictors are kept for the classes, keypoints and kinds of stuff that the weights
    know by name. Also what is to be said of those, line by line. Raises UserError where they do not fit the model.
    """
    variables = init(config.model, jax.random.key(config.seed))
    if config.pretrained is None:
        return variables, []
    try:
        if is_folder(config.pretrained):
            variables, lines = _from_checkpoint(Path(config.pretrained), config, variables, names)
        else:
            variables, lines = load_weights(
                config.pretrained, config.model, variables, names.class_names, names.stuff_names
            )
    except UserError as error:
        raise UserError(f"pretrained={error}") from None
    return variables, [f"{config.pretrained}: {lines[0]}", *lines[1:]]


def _from_checkpoint(
    path: Path, config: ExperimentConfig, variables: Variables, names: Metadata
) -> tuple[Variables, list[str]]:
    """The weights of another run, or of an import, whose configuration is known."""
    stored, weights, metadata = restore_for_inference(path)
    # Nothing can be learnt from features that mean something else.
    if lines := contradictions(conventions(stored.model), config.model):
        raise UserError(f"{path}: {'; '.join(lines)}; set the model as the weights were made")
    by_name = ByName(
        match(metadata.class_names, names.class_names),
        match(metadata.keypoint_names, names.keypoint_names),
        match_kinds(metadata.stuff_names, names.stuff_names),
    )
    try:
        variables, report = transplant(weights, config.model, variables, by_name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    told = [f"  model.{line}" for line in differences(stored.model, config.model)]
    if told:
        told.insert(0, f"  its settings of step {metadata.step} and those of this run differ:")
    if metadata.licence:
        told.insert(0, f"  licence of the weights, by which this run's may be bound: {metadata.licence}")
    return variables, [*report.lines(), *told]
