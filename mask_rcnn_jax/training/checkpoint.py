"""Writes the checkpoints of a run, behind Orbax, and goes on from them; `inference.checkpoint` reads them.

A checkpoint `WORKDIR/checkpoints/STEP` has the items `model` (what inference needs), `optimizer` (imported weights have
none), `average` (of a run with `ema_decay`), and `metadata` (the configuration, the class names and ids, the step, and
the metrics of its evaluation). The latest two and the best are kept.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mask_rcnn_jax import processes
from mask_rcnn_jax.config import from_json, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import (
    DAMAGED,
    FOLDER,
    Metadata,
    check_whole,
    damaged,
    fitting,
    model_tree,
    read_checkpoint,
    score,
)
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.step import TrainState

_SCORE = "score"


class Checkpoints:
    """Saves and restores the states of the run in `workdir`. Saving is asynchronous; close it, or leave its `with`."""

    def __init__(self, workdir: Path, config: ExperimentConfig, metadata: Metadata):
        self._config, self._metadata = config, metadata
        self._folder = workdir / FOLDER
        self._manager = _manager(self._folder)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Writes the state under its step, with its evaluation where there was one; a step already there stays."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._check_room(state)
        metadata = {
            "config": to_json(self._config),
            "class_names": list(self._metadata.class_names),
            "category_ids": list(self._metadata.category_ids),
            "step": step,
            "metrics": metrics and {name: value for name, value in metrics.items() if value == value},
        }
        items: dict[str, Any] = {
            "model": ocp.args.StandardSave(model_tree(state.variables)),
            "metadata": ocp.args.JsonSave(metadata),
        }
        if state.optimizer is not None:
            items["optimizer"] = ocp.args.StandardSave(_optimizer_tree(state))
        if state.average is not None:
            items["average"] = ocp.args.StandardSave(state.average)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics and {_SCORE: score(metrics)})

    def _check_room(self, state: TrainState) -> None:
        """Raises `UserError` where the disk is too full: found out by Orbax, it comes with pages of tracebacks."""
        self._manager.wait_until_finished()  # of the one before, as saving does: it still takes room
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"{self._folder.parent} has {free / 2**20:.0f} MiB left on its disk, and a checkpoint needs"
                f" {needed / 2**20:.0f}; make room, and the same command goes on from the last one"
            )

    def restore(self, state: TrainState) -> tuple[TrainState, list[str]]:
        """The latest state that is whole, with the shardings of `state`, which is of the same configuration.

        Without a checkpoint it is `state` itself. Also what is to be said: damaged checkpoints are moved to
        `WORKDIR/damaged`, and the one before is taken. Raises `UserError` where all are damaged.
        """
        steps, told = sorted(self._manager.all_steps(), reverse=True), []
        if not steps:
            return state, told
        for step in steps:
            # Of several processes the first one judges and moves: the rest would read what is being moved.
            reason = processes.by_first(partial(self._damage, step, state))
            if reason is None:
                return self._restore(step, state), told
            told.append(f"{reason}; moved to {processes.by_first(partial(self._set_aside, step))}")
            self._manager.reload()
        raise UserError(
            f"{self._folder} holds no checkpoint that can be read; use another --workdir, or put a whole one there"
            f" ({'; '.join(told)})"
        )

    def _damage(self, step: int, state: TrainState) -> str | None:
        """Says what is wrong with the files of a checkpoint."""
        try:
            for item in _items(state):
                check_whole(self._folder / str(step) / item)
        except DAMAGED as error:
            return str(damaged(self._folder / str(step), error))
        return None

    def _restore(self, step: int, state: TrainState) -> TrainState:
        expected = _items(state)
        arguments = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in expected.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        leaves, structure = jax.tree_util.tree_flatten_with_path(state.optimizer)
        stored = restored["optimizer"]
        optimizer = structure.unflatten([stored["state"][jax.tree_util.keystr(path)] for path, _ in leaves])
        variables = Variables(restored["model"]["params"], restored["model"]["buffers"])
        average = restored["average"] if state.average is not None else None
        return TrainState(jnp.full_like(state.step, step), variables, optimizer, average, stored["skipped"])

    def _set_aside(self, step: int) -> Path:
        """Takes a damaged checkpoint out of the way of the whole one that will have its step."""
        aside = self._folder.parent / "damaged" / str(step)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        (self._folder / str(step)).rename(aside)
        return aside


def restore_for_inference(
    path: str | Path, which: str = "best", average: bool = False
) -> tuple[ExperimentConfig, Variables, Metadata]:
    """The configuration, variables and metadata of a checkpoint; arguments and errors as for `load_model`."""
    stored = read_checkpoint(path, which, average)
    with fitting(stored.folder):
        config = from_json(ExperimentConfig, stored.experiment)
    return config, stored.variables, stored.metadata


def _manager(folder: Path) -> ocp.CheckpointManager:
    best = BestN(get_metric_fn=lambda metrics: metrics[_SCORE], n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(preservation_policy=AnyPreservationPolicy([LatestN(2), best]))
    return ocp.CheckpointManager(folder.resolve(), options=options)


def _items(state: TrainState) -> dict[str, Any]:
    """The arrays that a run is resumed from, by item."""
    items = {"model": model_tree(state.variables), "optimizer": _optimizer_tree(state)}
    return items if state.average is None else items | {"average": state.average}


def _optimizer_tree(state: TrainState) -> dict[str, Any]:
    return {"state": _flat(state.optimizer), "skipped": state.skipped}


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: optax's named tuples would tie the file to a version of optax."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
