"""Reads checkpoints, as `training.checkpoint` writes them: behind Orbax, pure dicts of arrays, and JSON beside them.

A run's checkpoints are the folders `WORKDIR/checkpoints/STEP`. Reading needs two items of each: `model`, and `metadata`
with the experiment's configuration, the class names and ids, the step, and the metrics of its evaluation.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from mask_rcnn_jax.config import from_json
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import MaskRCNNConfig, Variables, init
from mask_rcnn_jax.places import FOLDER

DAMAGED = (KeyError, OSError, TypeError, ValueError)  # what reading a broken checkpoint raises


@dataclass(frozen=True)
class Metadata:
    """What belongs to the weights besides the configuration."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the dataset's own id of each class
    step: int = 0
    metrics: dict[str, float] | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """What a checkpoint holds that prediction needs."""

    config: MaskRCNNConfig
    data: DataConfig  # how images are resized, and to which canvas they are padded
    variables: Variables
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the dataset's own id of each class
    step: int


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
        data = from_json(DataConfig, stored.experiment["data"])
    metadata = stored.metadata
    return Model(stored.model, data, stored.variables, metadata.class_names, metadata.category_ids, metadata.step)


def read_checkpoint(path: str | Path, which: str = "best", average: bool = False) -> StoredCheckpoint:
    """The checkpoint that `path`, `which` and `average` name, and its errors, as for `load_model`."""
    path = Path(path)
    if (path / "metadata").is_dir():
        folder, step = path.parent, _as_step(path.name, path)
    else:
        folder, step = path / FOLDER, None
    if not folder.is_dir():
        raise UserError(f"{path} holds no checkpoints; name the workdir of a training run, or one of its checkpoints")
    with ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        steps = manager.all_steps()
        if not steps:
            raise UserError(f"{folder} holds no finished checkpoint")
        step = _choose(manager, which, folder) if step is None else step
        if step not in steps:
            present = ", ".join(map(str, sorted(steps)))
            raise UserError(f"{folder} has no checkpoint of step {step}; there are {present}")
        stored = _metadata(manager, folder, step)
        with fitting(folder / str(step)):
            config = from_json(MaskRCNNConfig, stored["config"]["model"])
        variables = _variables(manager, folder, step, config, average)
    metadata = Metadata(tuple(stored["class_names"]), tuple(stored["category_ids"]), step, stored["metrics"])
    return StoredCheckpoint(folder / str(step), stored["config"], config, variables, metadata)


def deciding(metrics: dict[str, float]) -> str:
    """The metric by which a checkpoint is the best: AP of keypoints, of masks, or of boxes, the first that is there."""
    return next((name for name in ("keypoints/AP", "segm/AP") if name in metrics), "bbox/AP")


def score(metrics: dict[str, float]) -> float:
    """The deciding AP; an undefined one is the worst."""
    value = metrics.get(deciding(metrics), 0.0)
    return value if value == value else -1.0


def model_tree(variables: Variables) -> dict[str, Any]:
    """What the item `model` holds."""
    return {"params": variables.params, "buffers": variables.buffers}


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Says of a configuration that cannot be loaded which checkpoint has it."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{checkpoint} is of another version: {error}; load it with the version that wrote it"
        ) from None


def _choose(manager: ocp.CheckpointManager, which: str, folder: Path) -> int:
    steps = sorted(manager.all_steps())
    if which == "latest":
        return steps[-1]
    if which != "best":
        return _as_step(which, folder)
    metrics = {step: _metadata(manager, folder, step)["metrics"] for step in steps}
    evaluated = [step for step in steps if metrics[step]]
    # A run stopped before its first evaluation has no best; its latest is what there is.
    return max(evaluated, key=lambda step: score(metrics[step])) if evaluated else steps[-1]


def _as_step(name: str, folder: Path) -> int:
    if not name.isdigit():
        raise UserError(f"'{name}' names no checkpoint of {folder}; say best, latest, or a step")
    return int(name)


def _metadata(manager: ocp.CheckpointManager, folder: Path, step: int) -> dict[str, Any]:
    try:
        stored = manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
        missing = {"config", "class_names", "category_ids", "metrics"} - stored.keys()
        missing |= {"model", "data"} - stored["config"].keys() if "config" in stored else set()
    except DAMAGED as error:
        raise damaged(folder / str(step), error) from error
    if missing:
        raise UserError(
            f"{folder / str(step)} is of another version (its metadata has no {', '.join(sorted(missing))}); load it"
            " with the one that wrote it"
        )
    return stored


def _variables(
    manager: ocp.CheckpointManager, folder: Path, step: int, config: MaskRCNNConfig, average: bool
) -> Variables:
    """The arrays that the configuration's model has, on the process's first device."""
    checkpoint = folder / str(step)
    if average and not (checkpoint / "average").is_dir():
        raise UserError(f"{checkpoint} holds no average of the weights; only a run with ema_decay keeps one")
    expected = model_tree(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    model = _item(manager, checkpoint, "model", expected)
    params = _item(manager, checkpoint, "average", expected["params"]) if average else model["params"]
    return Variables(params, model["buffers"])


def _item(manager: ocp.CheckpointManager, checkpoint: Path, item: str, expected: Any) -> Any:
    """The arrays of an item of a checkpoint, which must have the shapes of `expected`."""
    try:
        check_whole(checkpoint / item)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), expected)
        different = _different(_shapes(abstract), _shapes(_stored_arrays(checkpoint / item)))
        if different is None:
            arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
            return manager.restore(int(checkpoint.name), args=arguments)[item]
    except DAMAGED as error:
        raise damaged(checkpoint, error) from error
    raise UserError(f"{checkpoint} is of another version ({different}); load it with the one that wrote it")


def _stored_arrays(item: Path) -> Any:
    """What is known of the arrays without reading them: Orbax finds a wrong one when it has begun to read the rest."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(item.resolve())
    return getattr(metadata, "item_metadata", metadata)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    tree = getattr(tree, "tree", tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _different(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str | None:
    """The first array in which the configuration's model and the stored one differ."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name} is {found.get(name, 'absent')} and not {expected.get(name, 'absent')}"
    return None


def check_whole(item: Path) -> None:
    """Reads what Orbax stored, once: its own answer to a missing file is a plain Exception and pages of state."""
    for file in [item / "_METADATA", *item.glob("_sharding"), *(item / "array_metadatas").glob("*")]:
        json.loads(file.read_bytes())
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item.resolve()}/"}).result()
    keys = store.list().result()
    if not keys:
        raise ValueError("no arrays")
    for key in keys:
        if not store.read(key).result().value:  # nothing is what is read of a file that is not there
            raise ValueError(f"no data for {key.decode()}")


def damaged(checkpoint: Path, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(
        f"{checkpoint} is damaged or half copied ({reason[:160]}); copy it again, or take another checkpoint"
    )
