"""The description of a study, and the plan that follows from it, in which everything has been checked."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mask_rcnn_jax.config import checked, override
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.python_files import call_python_file
from mask_rcnn_jax.ranges import AtLeastZero, Items, Range, Seed
from mask_rcnn_jax.training import ExperimentConfig

BASE = "base"  # the row that may override nothing

_ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}")  # of a folder, and in commands and tables
_OWN_FILES = "study."  # begins the names of the files beside the rows' folders
_METRIC = re.compile(
    r"(average/)?((bbox|segm)/(AP|AP50|AP75|AP[smlrcf]|AP/.+|AR[sml]|AR[0-9]+)"
    r"|keypoints/(AP|AP50|AP75|AP[ml]|AP/.+|AR|AR50|AR75|AR[ml]))"
)

# {"key": value}, or "key=value" as after --set, or a configuration in the place of the study's.
Overrides = Mapping[str, object] | Sequence[str] | ExperimentConfig


@dataclass(frozen=True)
class Study:
    """The rows and seeds of a study, as `get_study()` of its file returns them."""

    config: ExperimentConfig  # what the rows override
    rows: Mapping[str, Overrides] | Sequence[tuple[str, Overrides]]  # by name; the first is what others are compared to
    seeds: Sequence[int]
    metrics: Sequence[str] = ()  # those that decide, such as "segm/AP"; none: AP of all that a row's model finds
    checkpoint: str = "latest"  # of each run: "latest", or the "best", which its own metrics have chosen
    equalities: Sequence[tuple[str, str]] = ()  # pairs of rows that should come to the same bits, seed by seed
    tolerance: float = 1e-3  # how far the deciding metrics of such may be apart where the bits differ
    resamples: int = 1000  # draws of the images for the intervals; 0: none
    bootstrap_seed: int = 0


@dataclass(frozen=True)
class Row:
    """A row of a plan."""

    name: str
    overrides: tuple[str, ...] | None  # None: of a configuration of its own
    config: ExperimentConfig  # with the seed 0; each run has its own


@dataclass(frozen=True)
class Plan:
    """A study that has been checked; its fields are those of `Study`."""

    rows: Annotated[tuple[Row, ...], Items(1)]
    seeds: Annotated[tuple[Seed, ...], Items(1)]
    metrics: Annotated[tuple[str, ...], Items(1)]
    checkpoint: Literal["latest", "best"]
    equalities: tuple[tuple[str, str], ...]
    tolerance: AtLeastZero
    resamples: Annotated[int, Range(0, 1_000_000)]
    bootstrap_seed: Seed


def load_plan(path: Path) -> Plan:
    """Return the plan of what `get_study()` of the Python file `path` returns.

    Raises UserError naming the file where it is missing, fails, or returns no study, and what is wrong with the study.
    """
    study = call_python_file(path, "study file", "get_study")
    if not isinstance(study, Study):
        raise UserError(f"get_study() of {path} must return a Study, not {type(study).__name__}")
    try:
        return plan_of(study)
    except UserError as error:
        raise UserError(f"get_study() of {path}: {error}") from None


def plan_of(study: Study) -> Plan:
    """Return the plan of a study. Raises UserError naming the row, the key or the field that is wrong."""
    if not isinstance(study.config, ExperimentConfig):
        raise UserError(f"config must be an ExperimentConfig, not {type(study.config).__name__}")
    base, equalities = replace(checked(study.config), seed=0), _listed(study.equalities)
    pairs = equalities if isinstance(equalities, tuple) else ()
    paired = {name for pair in pairs if isinstance(pair, tuple | list) for name in pair if isinstance(name, str)}
    rows = tuple(_row(base, name, overrides, paired) for name, overrides in _named(study.rows))
    plan = Plan(
        rows=rows,
        seeds=_listed(study.seeds),
        metrics=_listed(study.metrics) or _all_ap(rows),
        checkpoint=study.checkpoint,  # type: ignore[arg-type]  # checked below
        equalities=equalities,
        tolerance=study.tolerance,
        resamples=study.resamples,
        bootstrap_seed=study.bootstrap_seed,
    )
    plan = checked(plan)
    _check_names(plan)
    _check_twins(plan)
    _check_repeated("seed", plan.seeds)
    _check_repeated("metric", plan.metrics)
    for name in plan.metrics:
        _check_metric(name, plan.rows)
    return plan


def _listed(value: Any) -> Any:
    """The items of a list; what is none is left to the check of types."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _named(rows: object) -> Iterator[tuple[str, object]]:
    """The rows as whoever wrote the file has them: of any type."""
    if isinstance(rows, str) or not isinstance(rows, Mapping | Sequence):
        raise UserError(f"rows: neither a table nor a list of names with their overrides, but {rows!r}")
    for item in rows.items() if isinstance(rows, Mapping) else rows:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
            raise UserError(f"rows: {item!r} is not a name with its overrides")
        yield item


def _row(base: ExperimentConfig, name: str, overrides: object, paired: set[str]) -> Row:
    if not _ROW_NAME.fullmatch(name) or name.startswith(_OWN_FILES):
        raise UserError(
            f"row {name!r} cannot be the name of a folder here; take letters, digits and any of _ . + = -, first a"
            f" letter or digit, and not {_OWN_FILES} at the beginning"
        )
    if isinstance(overrides, ExperimentConfig):
        try:
            return Row(name, None, replace(checked(overrides), seed=0))
        except UserError as error:
            raise UserError(f"row {name}: {error}") from None
    if isinstance(overrides, Mapping):
        assignments = tuple(f"{key}={value}" for key, value in overrides.items())
    elif isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise UserError(f"row {name}: its overrides are neither a table nor a list, but {overrides!r}")
    else:
        assignments = tuple(map(str, overrides))
    if not assignments and name != BASE and name not in paired:
        raise UserError(f"row {name} overrides nothing; only a row named {BASE}, or one of equalities, may")
    if any(assignment.partition("=")[0].strip() == "seed" for assignment in assignments):
        raise UserError(f"row {name} sets seed, which is that of each run; give the study's seeds")
    try:
        return Row(name, assignments, override(base, assignments))
    except UserError as error:
        raise UserError(f"row {name}: {error}") from None


def _check_names(plan: Plan) -> None:
    """Raise UserError where two rows would have one folder, also where a file system knows no capitals."""
    names = Counter(row.name.casefold() for row in plan.rows)
    if repeated := [row.name for row in plan.rows if names[row.name.casefold()] > 1]:
        raise UserError(f"two rows are named {repeated[0]} (capitals do not count); give one another name")
    known = {row.name for row in plan.rows}
    for pair in plan.equalities:
        if unknown := [name for name in pair if name not in known]:
            raise UserError(f"equalities: there is no row {unknown[0]}; there are {', '.join(sorted(known))}")
        if pair[0] == pair[1]:
            raise UserError(f"equalities: row {pair[0]} is compared with itself; name the row that repeats it")


def _check_twins(plan: Plan) -> None:
    """Raise UserError where two rows are the same runs, which only repetitions may be."""
    repeats = {frozenset(pair) for pair in plan.equalities}
    for index, row in enumerate(plan.rows):
        for other in plan.rows[:index]:
            if row.config == other.config and frozenset((row.name, other.name)) not in repeats:
                raise UserError(
                    f"rows {other.name} and {row.name} have the same settings; change one, or name them in equalities"
                    " as repetitions"
                )


def _check_repeated(what: str, values: Sequence[object]) -> None:
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise UserError(f"{what}s: {what} {repeated[0]} is named twice; take one out")


def _all_ap(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(f"{kind}/AP" for kind in ("bbox", "segm", "keypoints") if _lacking(f"{kind}/AP", rows) is None)


def _check_metric(name: str, rows: Sequence[Row]) -> None:
    if not _METRIC.fullmatch(name):
        raise UserError(
            f"metrics: there is none named {name}; they are kind/name of bbox, segm or keypoints, such as segm/AP,"
            " bbox/AP50, segm/APs or segm/AP/CLASS NAME, of averaged weights with average/ before it"
        )
    if lacking := _lacking(name, rows):
        raise UserError(f"metrics: no row has {name}, for which a model needs {lacking}")


def _lacking(metric: str, rows: Sequence[Row]) -> str | None:
    """The part of a model that the metric needs and no row has, None where one has it."""
    configs = [row.config for row in rows]
    if metric.startswith("average/") and not any(config.ema_decay for config in configs):
        return "ema_decay"
    kind = metric.removeprefix("average/").partition("/")[0]
    if kind == "segm" and all(config.model.mask_head is None for config in configs):
        return "a mask_head"
    if kind == "keypoints" and all(config.model.keypoint_head is None for config in configs):
        return "a keypoint_head"
    name = metric.removeprefix("average/").partition("/")[2]
    limits = {limit for config in configs for limit in config.evaluation.max_detections}
    if kind != "keypoints" and re.fullmatch("AR[0-9]+", name) and int(name[2:]) not in limits:
        return f"evaluation.max_detections with {name[2:]}"
    return None
