"""Training from start to end: data, model, steps, checkpoints, evaluation. One loop, in the order it runs."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from mask_rcnn_jax import processes
from mask_rcnn_jax.config import checked
from mask_rcnn_jax.data import CocoDataset, describe_left_out, train_batches
from mask_rcnn_jax.errors import Stopped, UserError
from mask_rcnn_jax.evaluation import evaluate_model, format_table
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.inference.checkpoint import Metadata, deciding, score
from mask_rcnn_jax.models import Variables
from mask_rcnn_jax.python_files import classes_from_outside
from mask_rcnn_jax.training.checkpoint import Checkpoints
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.datasets import describe, describe_keypoints, load_datasets
from mask_rcnn_jax.training.reporting.metrics import Writer, open_writer
from mask_rcnn_jax.training.reporting.profiling import ProfileSteps, profiled
from mask_rcnn_jax.training.reporting.weights_and_biases import logged_to_wandb
from mask_rcnn_jax.training.runs.disk_faults import disk_faults
from mask_rcnn_jax.training.runs.divergence import Watch
from mask_rcnn_jax.training.runs.provenance import Data, check_data, record_result, record_start
from mask_rcnn_jax.training.runs.stopping import StopRequests
from mask_rcnn_jax.training.runs.workdir import check_workdir, claim, locked
from mask_rcnn_jax.training.start import check_heads, first_state
from mask_rcnn_jax.training.step import TrainState, make_mesh, make_train_step, shard
from mask_rcnn_jax.training.window import Window


def train(
    config: ExperimentConfig, workdir: Path, profile: ProfileSteps | None = None, wandb_project: str | None = None
) -> dict[str, float]:
    """Trains in `workdir`, going on from its latest checkpoint where there is one, and returns the last evaluation.

    `profile` steps are traced; `wandb_project` is one of Weights & Biases that gets the numbers as well.
    Several processes train together. Raises `UserError` for what a person can mend, before the first step where it can
    be known then, and `Stopped` where a signal ended the run after a checkpoint.
    """
    start, state = _prepare(config, workdir)
    train_set, val_set = start.datasets["train"], start.datasets["val"]
    with ExitStack() as stack:
        stop_requests = stack.enter_context(StopRequests())
        stack.enter_context(disk_faults(workdir))
        about_lock = stack.enter_context(locked(workdir))
        processes.check_shared(workdir)
        config = processes.by_first(partial(claim, workdir, start.config))
        checkpoints = Checkpoints(workdir, config, start.metadata)
        stack.enter_context(checkpoints)
        state, about_state = checkpoints.restore(state)
        start_step = int(state.step)
        about_code = processes.by_first(partial(record_start, workdir, state, start.data, classes_from_outside(config)))
        # A step whose evaluation failed, or was cut off, is evaluated again.
        unevaluated = start_step > 0 and _evaluates(config, start_step) and not checkpoints.is_evaluated(start_step)
        writer = stack.enter_context(open_writer(workdir, config.steps, start_step, unevaluated))
        if wandb_project is not None and processes.is_first():
            writer = stack.enter_context(logged_to_wandb(writer, wandb_project, workdir, config))
        for line in (*about_lock, *start.told, *about_state, *about_code):
            writer.say(line)
        if start_step:
            writer.say(f"goes on from step {start_step} of {config.steps} in {workdir}")
        metrics: dict[str, float] = {}
        if start_step == config.steps:
            writer.say(f"{workdir} has finished its {config.steps} steps already")
        if unevaluated or start_step == config.steps:
            metrics = _evaluate(config, state, val_set, writer, start_step)
            checkpoints.record(start_step, metrics)
            _draw(workdir, writer)
        batches = train_batches(
            train_set,
            config.data,
            config.batch_size,
            config.seed,
            range(start_step, config.steps),
            processes.index_and_count(),
        )
        stack.enter_context(closing(batches))
        traced = profiled(make_train_step(config, start.mesh), profile, start_step, config.steps, workdir, writer)
        step_fn = stack.enter_context(traced)
        window, watch = Window(config, writer), Watch(config, workdir, writer)
        for step in range(start_step + 1, config.steps + 1):
            batch = window.next(batches)
            watch.keep(step, batch)
            state, measures = step_fn(state, shard(batch.inputs, start.mesh))
            evaluates = _evaluates(config, step)
            stops = stop_requests.reached(step)
            saves = evaluates or stops or step % config.checkpoint_every == 0
            # Measures are read one step late, so that the devices never wait for the host.
            watch.check(window.add(step, measures), state)
            if saves:
                watch.check(window.flush(step), state)
                with window.stopwatch.of("checkpoint"):
                    checkpoints.save(state)
            if evaluates:
                # After the checkpoint, which an evaluation that fails must not cost.
                with window.interrupted_by("evaluation"):
                    metrics = _evaluate(config, state, val_set, writer, step)
                    checkpoints.record(step, metrics)
                    _draw(workdir, writer)
            if stops and step < config.steps:
                raise Stopped(f"stopped at step {step} by a signal, after a checkpoint; the same command goes on")
        if start_step < config.steps:
            writer.say(window.stopwatch.describe())
        record_result(workdir, state)
        writer.say(f"finished with {deciding(metrics)} {score(metrics):.4f}; the run is in {workdir}")
    return metrics


@dataclass(frozen=True, eq=False)
class _Start:
    """The beginning of a run, besides its first state."""

    config: ExperimentConfig
    mesh: Mesh
    datasets: Mapping[str, CocoDataset]  # "train" and "val"
    data: Data
    metadata: Metadata
    told: list[str]  # what is to be said of the data and the weights


def _prepare(config: ExperimentConfig, workdir: Path) -> tuple[_Start, TrainState]:
    """Finds whatever may be wrong with the settings or the data before the workdir is touched; raises `UserError`."""
    processes.by_first(partial(check_workdir, workdir))
    config = checked(config)
    mesh = make_mesh(config)
    check_heads(config)
    config.data.source.prepare()
    datasets = load_datasets(config)
    data = processes.by_first(partial(check_data, workdir, datasets))
    train_set = datasets["train"]
    metadata = Metadata(
        train_set.class_names,
        train_set.categories,
        keypoint_names=train_set.keypoint_names,
        stuff_names=train_set.stuff_names,
        stuff_ids=train_set.stuff_categories,
    )
    state, about_weights = first_state(config, workdir, mesh, metadata)
    told = [
        *map(describe, datasets.values()),
        *describe_left_out(train_set, config.data),
        *describe_keypoints(train_set, config),
        *about_weights,
    ]
    return _Start(config, mesh, datasets, data, metadata, told), state


def _evaluates(config: ExperimentConfig, step: int) -> bool:
    return step == config.steps or (config.eval_every > 0 and step % config.eval_every == 0)


def _draw(workdir: Path, writer: Writer) -> None:
    if not processes.is_first():
        return
    try:
        require("plots", workdir / "curves.png")
    except UserError as missing:
        writer.say(str(missing))
        return
    from mask_rcnn_jax.training.reporting.curves import draw_curves

    if (trouble := draw_curves(workdir)) is not None:
        writer.say(trouble)


def _evaluate(
    config: ExperimentConfig, state: TrainState, dataset: CocoDataset, writer: Writer, step: int
) -> dict[str, float]:
    """The metrics of the weights, and under `average/` those of their average where there is one."""

    def evaluate(variables: Variables, what: str) -> dict[str, float]:
        result = evaluate_model(config.model, config.data, config.evaluation, variables, dataset)
        for line in (f"evaluation at step {step}{what}\n{format_table(result.metrics)}", *result.left_out):
            writer.say(line)
        return result.metrics

    metrics = evaluate(state.variables, "")
    if state.average is not None:
        averaged = evaluate(state.averaged(), ", averaged weights")
        metrics |= {f"average/{name}": value for name, value in averaged.items()}
    writer.write(step, metrics)
    return metrics
