"""Checkpoints of a run, behind Orbax: pure dicts of arrays, and JSON beside them.

A checkpoint `WORKDIR/checkpoints/STEP` has three items: `model` (what inference needs), `optimizer` (imported weights
have none), and `metadata` (the configuration, the class names and ids, the step, and the metrics of its evaluation).
The latest two and the best are kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mask_rcnn_jax.config import from_json, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import Variables, init
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.step import TrainState

FOLDER = "checkpoints"
_SCORE = "score"


@dataclass(frozen=True)
class Metadata:
    """What belongs to the weights besides the configuration."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the dataset's own id of each class
    step: int = 0
    metrics: dict[str, float] | None = None


class Checkpoints:
    """Saves and restores the states of the run in `workdir`. Saving is asynchronous; close it, or leave its `with`."""

    def __init__(self, workdir: Path, config: ExperimentConfig, metadata: Metadata):
        self._config, self._metadata = config, metadata
        self._manager = _manager(workdir / FOLDER)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Writes the state under its step, with its evaluation where there was one; a step already there stays."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metadata = {
            "config": to_json(self._config),
            "class_names": list(self._metadata.class_names),
            "category_ids": list(self._metadata.category_ids),
            "step": step,
            "metrics": metrics and {name: value for name, value in metrics.items() if value == value},
        }
        items: dict[str, Any] = {
            "model": ocp.args.StandardSave(_model_tree(state.variables)),
            "metadata": ocp.args.JsonSave(metadata),
        }
        if state.optimizer is not None:
            items["optimizer"] = ocp.args.StandardSave(_flat(state.optimizer))
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics and {_SCORE: score(metrics)})

    def restore(self, state: TrainState) -> TrainState:
        """The latest state, with the shardings of `state`, which is of the same configuration."""
        step = self._manager.latest_step()
        assert step is not None, "nothing to restore"
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(_abstract(_model_tree(state.variables))),
                optimizer=ocp.args.StandardRestore(_abstract(_flat(state.optimizer))),
            ),
        )
        leaves, structure = jax.tree_util.tree_flatten_with_path(state.optimizer)
        optimizer = structure.unflatten([restored["optimizer"][jax.tree_util.keystr(path)] for path, _ in leaves])
        variables = Variables(restored["model"]["params"], restored["model"]["buffers"])
        return TrainState(jnp.full_like(state.step, step), variables, optimizer)


def deciding(metrics: dict[str, float]) -> str:
    """The metric by which a checkpoint is the best: AP of keypoints, of masks, or of boxes, the first that is there."""
    return next((name for name in ("keypoints/AP", "segm/AP") if name in metrics), "bbox/AP")


def score(metrics: dict[str, float]) -> float:
    """The deciding AP; an undefined one is the worst."""
    value = metrics.get(deciding(metrics), 0.0)
    return value if value == value else -1.0


def restore_for_inference(path: str | Path, which: str = "best") -> tuple[ExperimentConfig, Variables, Metadata]:
    """The configuration, variables and metadata of a checkpoint.

    `path` is a run's workdir, of which `which` names the checkpoint ("best", "latest" or a step), or is a checkpoint.
    Raises UserError where there is no such checkpoint.
    """
    path = Path(path)
    if (path / "metadata").is_dir():
        folder, step = path.parent, _as_step(path.name, path)
    else:
        folder, step = path / FOLDER, None
    if not folder.is_dir():
        raise UserError(f"{path} holds no checkpoints; name the workdir of a training run, or one of its checkpoints")
    with _manager(folder, read_only=True) as manager:
        steps = manager.all_steps()
        if not steps:
            raise UserError(f"{folder} holds no finished checkpoint")
        step = _choose(manager, which, folder) if step is None else step
        if step not in steps:
            present = ", ".join(map(str, sorted(steps)))
            raise UserError(f"{folder} has no checkpoint of step {step}; there are {present}")
        stored = _metadata(manager, step)
        config = from_json(ExperimentConfig, stored["config"])
        shapes = jax.eval_shape(lambda: init(config.model, jax.random.key(0)))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _model_tree(shapes))
        model = manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(abstract)))["model"]
    metadata = Metadata(tuple(stored["class_names"]), tuple(stored["category_ids"]), step, stored["metrics"])
    return config, Variables(model["params"], model["buffers"]), metadata


def _manager(folder: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    best = BestN(get_metric_fn=lambda metrics: metrics[_SCORE], n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else AnyPreservationPolicy([LatestN(2), best]), read_only=read_only
    )
    return ocp.CheckpointManager(folder.resolve(), options=options)


def _metadata(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]


def _choose(manager: ocp.CheckpointManager, which: str, folder: Path) -> int:
    steps = sorted(manager.all_steps())
    if which == "latest":
        return steps[-1]
    if which != "best":
        return _as_step(which, folder)
    metrics = {step: _metadata(manager, step)["metrics"] for step in steps}
    evaluated = [step for step in steps if metrics[step]]
    # A run stopped before its first evaluation has no best; its latest is what there is.
    return max(evaluated, key=lambda step: score(metrics[step])) if evaluated else steps[-1]


def _as_step(name: str, folder: Path) -> int:
    if not name.isdigit():
        raise UserError(f"'{name}' names no checkpoint of {folder}; say best, latest, or a step")
    return int(name)


def _model_tree(variables: Variables) -> dict[str, Any]:
    return {"params": variables.params, "buffers": variables.buffers}


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: optax's named tuples would tie the file to a version of optax."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
