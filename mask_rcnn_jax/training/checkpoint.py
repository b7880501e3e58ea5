"""Writes the checkpoints of a run, behind Orbax, and goes on from them; `inference.checkpoint` reads them.

A checkpoint `WORKDIR/checkpoints/STEP` has the items `model` (what inference needs), `optimizer` (imported weights have
none), `average` (of a run with `ema_decay`), and `metadata` (the configuration, the class names and ids, the step, and
checksums of the arrays); `evaluation.json` beside them has the metrics, where the step was evaluated. The latest two
and the best are kept, and until the next one is saved the former best.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from mask_rcnn_jax import processes
from mask_rcnn_jax.config import from_json, to_json
from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.disk.places import FOLDER, finished_steps
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.checkpoint import (
    EVALUATION,
    Metadata,
    best_step,
    by_stored_name,
    check_item,
    model_tree,
    read_checkpoint,
    score,
    shapes,
    stored_metrics,
)
from mask_rcnn_jax.inference.faults import damaged, familiar, fitting, readable
from mask_rcnn_jax.inference.stored import Damaged, checksum, plainly_named
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.step import TrainState


class Checkpoints:
    """Saves and restores the states of the run in `workdir`. Saving is asynchronous; leave its `with` to end it."""

    def __init__(self, workdir: Path, config: ExperimentConfig, metadata: Metadata):
        self._config, self._metadata = config, metadata
        self._folder = workdir / FOLDER
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._folder} cannot be written ({error.strerror or error}); mend that") from None
        with ExitStack() as stack:
            self._plain = stack.enter_context(plainly_named(self._folder))
            self._kept = _LatestAndBest({})
            options = ocp.CheckpointManagerOptions(preservation_policy=self._kept)
            self._manager = ocp.CheckpointManager(self._plain, options=options)
            stack.callback(self._manager.close)
            self._check_steps()
            self._kept.scores |= processes.by_first(self._stored_scores)
            self._opened = stack.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def save(self, state: TrainState) -> None:
        """Writes the state under its step; a step already there stays."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._check_room(state)
        arrays = _items(state)
        metadata = {
            "config": to_json(self._config),
            "class_names": list(self._metadata.class_names),
            "category_ids": list(self._metadata.category_ids),
            "keypoint_names": list(self._metadata.keypoint_names),
            "stuff_names": list(self._metadata.stuff_names),
            "stuff_ids": list(self._metadata.stuff_ids),
            "licence": self._metadata.licence,
            "step": step,
            "metrics": None,  # for the versions that look for them here
            "checksums": {item: _checksums(tree) for item, tree in arrays.items()},
        }
        items = {name: ocp.args.StandardSave(_of_one_device(tree)) for name, tree in arrays.items()}
        self._manager.save(step, args=ocp.args.Composite(metadata=ocp.args.JsonSave(metadata), **items))

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of its evaluation to the checkpoint of `step`, which has been saved."""
        self._manager.wait_until_finished()
        known = {name: value if value == value else None for name, value in metrics.items()}
        if processes.is_first():
            with replacing(self._folder / str(step) / EVALUATION) as part:
                part.write_text(json.dumps(known) + "\n")
        self._kept.scores[step] = score(metrics)

    def is_evaluated(self, step: int) -> bool:
        """Tell whether the checkpoint of `step` has the metrics of its evaluation."""
        return step in self._kept.scores

    def _check_steps(self) -> None:
        """Raise `UserError` where Orbax has passed over checkpoints, as it does where the disk fails."""
        if passed_over := set(finished_steps(self._folder)) - set(self._manager.all_steps()):
            path = self._folder / str(max(passed_over))
            raise UserError(f"{path} could not be looked at; check that disk, and the same command goes on from there")

    def _stored_scores(self) -> dict[int, float]:
        """The scores of the checkpoints that were evaluated; a damaged one has none."""
        scores: dict[int, float] = {}
        for step in self._manager.all_steps():
            with readable(self._folder / str(step)), familiar(self._folder / str(step)):
                try:
                    metrics = stored_metrics(self._plain / str(step))
                except Damaged:
                    continue
            if metrics:
                scores[step] = score(metrics)
        return scores

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

        Without a checkpoint it is `state` itself. Also what is to be said: checkpoints whose files are missing or
        cannot be decoded are moved to `WORKDIR/damaged`, and the one before is taken. Raises `UserError`, and moves
        nothing, where none is whole, where the disk fails, and where one does not fit `state` or has an unknown layout.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            return state, []
        expected = {item: shapes(tree) for item, tree in _items(state).items()}
        # Of several processes the first one judges and moves: the rest would read what is being moved.
        step, told = processes.by_first(lambda: self._latest_whole(steps, expected))
        if told:
            self._manager.reload()
        for later in steps[: steps.index(step)]:
            self._kept.scores.pop(later, None)
        with readable(self._folder / str(step)):
            return self._restore(step, state), told

    def _latest_whole(
        self, steps: Sequence[int], expected: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> tuple[int, list[str]]:
        """The latest of `steps` that is whole, and what is said of those after it, which are moved away."""
        broken: dict[int, UserError] = {}
        for step in steps:
            checkpoint = self._folder / str(step)
            try:
                with readable(checkpoint), familiar(checkpoint):
                    differences = [
                        f"{item}, {different}"
                        for item, arrays in expected.items()
                        if (different := check_item(self._plain / str(step) / item, arrays)) is not None
                    ]
            except Damaged as error:
                broken[step] = damaged(checkpoint, error)
                continue
            if differences:
                raise UserError(
                    f"{checkpoint} does not fit this run ({differences[0]}); go on with the packages that wrote it,"
                    " which starts.jsonl names, or use another --workdir"
                )
            return step, [f"{reason}; moved to {self._set_aside(later)}" for later, reason in broken.items()]
        raise UserError(
            f"{self._folder} holds no checkpoint that can be read, and none was moved; use another --workdir, or put a"
            f" whole one there ({'; '.join(map(str, broken.values()))})"
        )

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
        folder = self._folder.parent / "damaged"
        names = (folder / (f"{step}-{number}" if number else str(step)) for number in count())
        try:
            folder.mkdir(exist_ok=True)
            aside = next(path for path in names if not path.exists())
            (self._folder / str(step)).rename(aside)
        except OSError as error:
            raise UserError(
                f"{self._folder / str(step)} is damaged and cannot be moved to {folder} ({error.strerror or error});"
                " move it away"
            ) from None
        return aside


class _LatestAndBest(PreservationPolicy):
    """Keeps the latest two checkpoints, and the best of those that have been evaluated."""

    def __init__(self, scores: dict[int, float]):
        self.scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(sorted(steps)[-2:])
        if present := {step: self.scores[step] for step in steps if step in self.scores}:
            kept.add(best_step(present))
        return [step in kept for step in steps]


def restore_for_inference(
    path: str | Path, which: str = "best", average: bool = False
) -> tuple[ExperimentConfig, Variables, Metadata]:
    """The configuration, variables and metadata of a checkpoint; arguments and errors as for `load_model`."""
    stored = read_checkpoint(path, which, average)
    with fitting(stored.folder):
        config = from_json(ExperimentConfig, stored.experiment)
    return config, stored.variables, stored.metadata


def _items(state: TrainState) -> dict[str, Any]:
    """The arrays of a state, by item; weights that only predict have no optimizer."""
    items = {"model": model_tree(state.variables)}
    if state.optimizer is not None:
        items["optimizer"] = _optimizer_tree(state)
    if state.average is not None:
        items["average"] = state.average
    return items


def _of_one_device(tree: Any) -> Any:
    """The arrays as one device has them; those of several processes as they are.

    Of arrays that all devices of a process have, Orbax writes a part from each, and compiles one more program for every
    shape and device to cut it.
    """
    if jax.process_count() > 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def _checksums(tree: Any) -> dict[str, int]:
    return {name: checksum(np.asarray(array)) for name, array in by_stored_name(tree).items()}


def _optimizer_tree(state: TrainState) -> dict[str, Any]:
    return {"state": _flat(state.optimizer), "skipped": state.skipped}


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: optax's named tuples would tie the file to a version of optax."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
