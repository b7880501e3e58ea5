"""Reads checkpoints, as `training.checkpoint` writes them: behind Orbax, pure dicts of arrays, and JSON beside them.

A run's checkpoints are the folders `WORKDIR/checkpoints/STEP`. Reading needs two items of each: `model`, and `metadata`
with the experiment's configuration, the class names and ids, and the step. Where the step was evaluated, the metrics
are beside them in `evaluation.json`; older checkpoints have theirs in `metadata`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import jax
import orbax.checkpoint as ocp

from mask_rcnn_jax.config import UnknownClass, from_json, to_json
from mask_rcnn_jax.data import DataConfig, ShapesConfig
from mask_rcnn_jax.data.augment.keypoint_flips import COCO_KEYPOINTS
from mask_rcnn_jax.data.config import CANVAS_DIVISOR
from mask_rcnn_jax.disk.files import exists, is_folder
from mask_rcnn_jax.disk.places import FOLDER, checkpoints_in, finished_steps, step_of
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.faults import damaged, familiar, fitting, readable, whole
from mask_rcnn_jax.inference.results.panoptic import Stuff, stuff_of
from mask_rcnn_jax.inference.stored import Damaged, check_readable, plainly_named, read_json, stored_shapes
from mask_rcnn_jax.models import GivenProposalsConfig, MaskRCNNConfig, Variables, abstract

EVALUATION = "evaluation.json"
# Lists of the metadata and of what they are; those after the first two may be missing.
_NAMES = {"class_names": str, "category_ids": int, "keypoint_names": str, "stuff_names": str, "stuff_ids": int}


@dataclass(frozen=True)
class Metadata:
    """Everything that belongs to the weights besides the configuration."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the dataset's own id of each class
    step: int = 0
    metrics: dict[str, float] | None = None
    keypoint_names: tuple[str, ...] = ()  # the dataset's; none where it has none, and in older checkpoints
    stuff_names: tuple[str, ...] = ()  # of the kinds of stuff 1, 2, ...; none where they are not known
    stuff_ids: tuple[int, ...] = ()  # the dataset's own id of each
    licence: str = ""  # of imported weights; none is said of what was trained here, and in older checkpoints


@dataclass(frozen=True, eq=False)
class Model:
    """The parts of a checkpoint that prediction needs."""

    config: MaskRCNNConfig
    data: DataConfig  # how images are resized, and to which canvas they are padded
    variables: Variables
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the dataset's own id of each class
    step: int
    keypoint_names: tuple[str, ...] = ()  # none where they are not known
    stuff_names: tuple[str, ...] = ()  # of the kinds of stuff 1, 2, ...; none where they are not known
    stuff_ids: tuple[int, ...] = ()  # the dataset's own id of each
    licence: str = ""  # of imported weights, if something is known of it

    @property
    def stuff(self) -> Stuff:
        """The kinds of stuff that the model tells apart."""
        return stuff_of(self.config, self.stuff_names, self.stuff_ids, self.category_ids)

    @property
    def canvas_divisor(self) -> int:
        """The number that the sides of canvases are multiples of."""
        return math.lcm(CANVAS_DIVISOR, self.config.backbone.size_divisor)

    def check_proposing(self) -> None:
        """Raise `UserError` for a model that is given its proposals: images alone come without."""
        if isinstance(self.config.rpn, GivenProposalsConfig):
            raise UserError(
                "the model is given its proposals (rpn is GivenProposalsConfig), and images alone have none; evaluate"
                " it with data.proposals (mask-rcnn eval), or call models.detect in Python with proposals"
            )


@dataclass(frozen=True, eq=False)
class StoredCheckpoint:
    """A checkpoint as it was written."""

    folder: Path
    experiment: dict[str, Any]  # the configuration of training, as a tree of JSON values
    model: MaskRCNNConfig
    variables: Variables
    metadata: Metadata


def load_model(path: str | Path, which: str = "best", average: bool = False) -> Model:
    """The model of a checkpoint, ready to predict.

    `path` is a run's workdir, of which `which` names the checkpoint ("best", "latest" or a step), or is a checkpoint.
    `average` takes of that checkpoint the average of the weights, which a run with `ema_decay` keeps. Raises
    `UserError` where there is no such checkpoint or average, or where it is damaged or of another version.
    """
    stored = read_checkpoint(path, which, average)
    with fitting(stored.folder):
        data = _data_config(stored.experiment["data"])
    metadata = stored.metadata
    names = metadata.keypoint_names or _older_keypoint_names(stored.model, data)
    return Model(
        stored.model,
        data,
        stored.variables,
        metadata.class_names,
        metadata.category_ids,
        metadata.step,
        names,
        metadata.stuff_names,
        metadata.stuff_ids,
        metadata.licence,
    )


def _data_config(tree: Any) -> DataConfig:
    """Load the settings of data. Predicting reads no source, so one of a class that nobody has defined gives way."""
    try:
        return from_json(DataConfig, tree)
    except UnknownClass:
        return from_json(DataConfig, tree | {"source": to_json(ShapesConfig())})


def read_checkpoint(path: str | Path, which: str = "best", average: bool = False) -> StoredCheckpoint:
    """The checkpoint that `path`, `which` and `average` name, and its errors, as for `load_model`."""
    path = Path(path)
    with readable(path):
        folder, step = place_of(path)
        options = ocp.CheckpointManagerOptions(read_only=True)
        with plainly_named(folder) as plain, ocp.CheckpointManager(plain, options=options) as manager:
            return _read(_Run(folder, plain, manager), which if step is None else str(step), average)


def place_of(path: Path) -> tuple[Path, int | None]:
    """Return the folder of checkpoints that `path` names, and the step where it names one of them.

    Raises `UserError` where there is no such folder, or where names in it are no steps.
    """
    if is_folder(path / "metadata"):
        real = Path(os.path.realpath(path))  # a link, or "." inside it, does not have its name
        checkpoint = path if path.name == real.name or step_of(real.name) is None else real
        if (step := step_of(checkpoint.name)) is None:
            raise UserError(f"{path} is a checkpoint without its name, which is the number of its step; rename it")
        return checkpoint.parent, step
    folder = path / FOLDER
    if not is_folder(folder):
        raise UserError(f"{path} holds no checkpoints; name the workdir of a training run, or one of its checkpoints")
    checkpoints_in(folder)  # refuses names that would be passed over
    return folder, None


@dataclass(frozen=True, eq=False)
class _Run:
    """The checkpoints of a run, to be read."""

    folder: Path  # as messages name it
    plain: Path  # as Orbax can use it
    manager: ocp.CheckpointManager


def _read(run: _Run, which: str, average: bool) -> StoredCheckpoint:
    steps = finished_steps(run.folder)
    if not steps:
        raise UserError(f"{run.folder} holds no finished checkpoint")
    step = _choose(run, steps, which)
    if step not in steps:
        raise UserError(f"{run.folder} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    checkpoint = run.folder / str(step)
    with whole(checkpoint):
        stored = _metadata(run.plain / str(step), checkpoint)
        metrics = stored_metrics(run.plain / str(step))
    with fitting(checkpoint):
        config = from_json(MaskRCNNConfig, stored["config"]["model"])
    metadata = Metadata(step=step, metrics=metrics, licence=stored["licence"], **{k: tuple(stored[k]) for k in _NAMES})
    with whole(checkpoint):
        _check_names(config, metadata)
        variables = _variables(run, step, config, average)
    return StoredCheckpoint(checkpoint, stored["config"], config, variables, metadata)


def stored_metrics(checkpoint: Path) -> dict[str, float] | None:
    """The metrics of a checkpoint's evaluation, None where it has not been evaluated.

    Raises `Damaged` where they cannot be decoded, `Unfamiliar` where the checkpoint has another layout, and `OSError`
    where the disk fails.
    """
    if (checkpoint / EVALUATION).exists():
        metrics = read_json(checkpoint / EVALUATION)
    else:
        metadata = read_json(checkpoint / "metadata" / "metadata")
        metrics = metadata.get("metrics") if isinstance(metadata, dict) else None
    if metrics is None:
        return None
    if not isinstance(metrics, dict) or not all(type(value) in (int, float, NoneType) for value in metrics.values()):
        raise Damaged("the metrics are not numbers by name")
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def best_step(scores: Mapping[int, float]) -> int:
    """The step of the highest score, the earliest of equal ones."""
    return max(sorted(scores), key=lambda step: scores[step])


def _check_names(model: MaskRCNNConfig, metadata: Metadata) -> None:
    """Raise `Damaged` where the model has not as many classes, or keypoints, as the metadata name."""
    counts: list[tuple[str, Sequence[Any], int]] = [
        ("class_names", metadata.class_names, model.num_classes),
        ("category_ids", metadata.category_ids, model.num_classes),
    ]
    if metadata.keypoint_names and model.keypoint_head is not None:
        counts += [("keypoint_names", metadata.keypoint_names, model.keypoint_head.num_keypoints)]
    if len(metadata.stuff_names) != len(metadata.stuff_ids):
        counts += [("stuff_ids", metadata.stuff_ids, len(metadata.stuff_names))]
    for key, found, expected in counts:
        if len(found) != expected:
            raise Damaged(f"{key} of the metadata are {len(found)}, and the model has {expected}")


def _older_keypoint_names(model: MaskRCNNConfig, data: DataConfig) -> tuple[str, ...]:
    """Return the names of keypoints for a checkpoint that has none: COCO's, where it was trained on COCO's own files.

    Imported weights name those files, too. That there are 17 is not enough: other datasets have as many.
    """
    of_coco = getattr(data.source, "annotation_file", "").startswith("person_keypoints_")
    if of_coco and model.keypoint_head is not None and model.keypoint_head.num_keypoints == len(COCO_KEYPOINTS):
        return COCO_KEYPOINTS
    return ()


def deciding(metrics: dict[str, float]) -> str:
    """The metric by which a checkpoint is the best: AP of keypoints, of masks, or of boxes, the first that is there."""
    return next((name for name in ("keypoints/AP", "segm/AP") if name in metrics), "bbox/AP")


def score(metrics: dict[str, float]) -> float:
    """The deciding AP; an undefined one is the worst."""
    value = metrics.get(deciding(metrics), 0.0)
    return value if value == value else -1.0


def model_tree(variables: Variables) -> dict[str, Any]:
    """Return the contents of the item `model`."""
    return {"params": variables.params, "buffers": variables.buffers}


def _choose(run: _Run, steps: list[int], which: str) -> int:
    if which == "latest":
        return steps[-1]
    if which != "best":
        return _as_step(which, run.folder)
    scores: dict[int, float] = {}
    for step in steps:
        try:
            with familiar(run.folder / str(step)):
                metrics = stored_metrics(run.plain / str(step))
        except Damaged as error:
            if not exists(run.plain / str(step) / "metadata" / "metadata"):
                continue  # it is being removed by its run, or was when that was killed, and so is not the best
            raise damaged(run.folder / str(step), error) from error
        if metrics:
            scores[step] = score(metrics)
    # A run stopped before its first evaluation has no best; its latest is what there is.
    return best_step(scores) if scores else steps[-1]


def _as_step(name: str, folder: Path) -> int:
    if not (name.isdecimal() and len(name) < 20):
        raise UserError(f"'{name}' names no checkpoint of {folder}; say best, latest, or a step")
    return int(name)


def _metadata(checkpoint: Path, name: Path) -> dict[str, Any]:
    """The item `metadata` of the checkpoint that messages call `name`."""
    stored = read_json(checkpoint / "metadata" / "metadata")
    config = stored.get("config", {}) if isinstance(stored, dict) else None
    if not isinstance(config, dict):
        raise Damaged("the metadata are no table")
    missing = {"config", "class_names", "category_ids"} - stored.keys()
    missing |= {"model", "data"} - config.keys() if "config" in stored else set()
    if missing:
        raise UserError(
            f"{name} is of another version (its metadata has no {', '.join(sorted(missing))}); load it with the one"
            " that wrote it"
        )
    stored = {key: [] for key in _NAMES} | {"licence": ""} | stored
    if not isinstance(stored["licence"], str):
        raise Damaged("licence of the metadata is no text")
    for key, kind in _NAMES.items():
        if not isinstance(stored[key], list) or not all(type(value) is kind for value in stored[key]):
            raise Damaged(f"{key} of the metadata is no list of {kind.__name__}")
    return stored


def _variables(run: _Run, step: int, config: MaskRCNNConfig, average: bool) -> Variables:
    """The arrays that the configuration's model has, on the process's first device."""
    if average and not (run.plain / str(step) / "average").is_dir():
        raise UserError(
            f"{run.folder / str(step)} holds no average of the weights; only a run with ema_decay keeps one"
        )
    expected = model_tree(abstract(config))
    model = _item(run, step, "model", expected)
    params = _item(run, step, "average", expected["params"]) if average else model["params"]
    return Variables(params, model["buffers"])


def _item(run: _Run, step: int, item: str, expected: Any) -> Any:
    """The arrays of an item of a checkpoint, which must have the shapes of `expected`."""
    different = check_item(run.plain / str(step) / item, shapes(expected))
    if different is not None:
        raise UserError(
            f"{run.folder / str(step)} is of another version ({different}); load it with the one that wrote it"
        )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), expected)
    arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
    return run.manager.restore(step, args=arguments)[item]


def check_item(item: Path, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first array in which what is stored differs from what is expected; if none does, all have been read once.

    Raises `Damaged` where a file is missing or cannot be decoded, `Unfamiliar` where the item has another layout, and
    `OSError` where the disk fails: what Orbax raises afterwards is none of these.
    """
    found = stored_shapes(item)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name} is {found.get(name, 'absent')} and not {expected.get(name, 'absent')}"
    check_readable(item, found)
    return None


def by_stored_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the dotted names that they are stored under."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's arrays by the names that they are stored under."""
    return {name: tuple(leaf.shape) for name, leaf in by_stored_name(tree).items()}
