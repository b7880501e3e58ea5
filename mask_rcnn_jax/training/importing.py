"""Weights from elsewhere as a checkpoint of this project, with an experiment's configuration and the class names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from mask_rcnn_jax.config import override
from mask_rcnn_jax.data import CocoConfig, DataConfig
from mask_rcnn_jax.data.augment.keypoint_flips import COCO_KEYPOINTS
from mask_rcnn_jax.data.records.entries import check_category, check_object, list_of, parse_json
from mask_rcnn_jax.disk.places import FOLDER, checkpoints_in
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import GivenProposalsConfig, MaskRCNNConfig, init
from mask_rcnn_jax.pretrained import (
    TITLES,
    ByName,
    Classes,
    Report,
    Source,
    assumptions,
    check_backbone,
    convert,
    count_classes,
    describe,
    find_source,
    infer,
    licence_of,
    match,
    numbered_classes,
    published_classes,
    published_stuff,
    read_tensors,
    square_side,
)
from mask_rcnn_jax.training.checkpoint import Checkpoints, Metadata
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.runs.disk_faults import disk_faults
from mask_rcnn_jax.training.runs.workdir import claim
from mask_rcnn_jax.training.step import TrainState


def import_weights(
    path: Path,
    out: Path,
    classes: Classes | None = None,
    experiment: ExperimentConfig | None = None,
    assignments: Sequence[str] = (),
    licence: str | None = None,
) -> list[str]:
    """Writes the checkpoint `out` with the weights of a detector's file, and returns what a person should know of it.

    The configuration is inferred, or that of `experiment`; `assignments` change it. `classes` of another number than
    the file's keep the predictors of those that it knows by name, and reset the others. Without a `licence` it is what
    the publisher of such files says. Raises UserError where the file is no detector, or does not fit the configuration.
    """
    if checkpoints_in(out / FOLDER):  # an import that was killed leaves at most an unfinished one
        raise UserError(f"--out {out} holds checkpoints already; use another folder")
    tensors = read_tensors(path)
    source = find_source(tensors)
    if source is None:
        *others, last = TITLES.values()
        raise UserError(
            f"{path} holds no detector of {', '.join(others)} or {last} (its first tensors are"
            f" {', '.join(list(tensors)[:3])}); to train on a backbone, set pretrained={path}"
        )
    with _naming(path):
        present = count_classes(tensors, source)
        config = experiment or _published(infer(tensors, source), source)
    config = override(replace(config, pretrained=str(out)), assignments)
    if classes is not None:
        config = replace(config, model=replace(config.model, num_classes=len(classes.names)))
    known = published_classes(replace(config.model, num_classes=present), source)
    named = classes or (known if present == config.model.num_classes else None)
    unnamed = named is None
    named = named or numbered_classes(config.model.num_classes)
    # As many other names are names for the file's own classes.
    by_name = known is not None and (present != len(named.names) or sorted(known.names) == sorted(named.names))
    matched = match(known.names, named.names) if known is not None and by_name else None
    # Random variables are needed for predictors of other classes only; else everything must be in the file.
    complete = present == len(named.names) and (matched is None or matched.same)
    variables = None if complete else init(config.model, jax.random.key(config.seed))
    with _naming(path):
        check_backbone(tensors, source, config.model)
        variables, report = convert(tensors, config.model, source, variables, ByName(matched))
    keypoint_names = _published_keypoints(config.model)
    licence = licence_of(source) if licence is None else licence
    stuff = published_stuff(config.model, source) or Classes((), ())
    metadata = Metadata(
        named.names,
        named.ids,
        keypoint_names=keypoint_names,
        stuff_names=stuff.names,
        stuff_ids=stuff.ids,
        licence=licence,
    )
    with disk_faults(out, "the same command imports again"):
        claim(out, config)
        with Checkpoints(out, config, metadata) as checkpoints:
            checkpoints.save(TrainState(jnp.int32(0), variables, None))
    assumed = assumptions(config.model, source) if experiment is None else []
    if keypoint_names:
        assumed = [*assumed, f"keypoints are COCO's, {keypoint_names[0]} to {keypoint_names[-1]}"]
    notes = [*(f"  assumed: {line}" for line in assumed), f"  licence of the weights: {licence}"]
    if unnamed:
        notes.insert(0, "  the file does not say what the classes are; give their names by --classes")
    return _told(path, out, config, named, report, notes)


def read_classes(text: str) -> Classes:
    """The classes that `--classes` names: a number, a file with a name on each line, or COCO annotations."""
    if text.isdecimal() and len(text) <= 6 and int(text) > 0:
        return numbered_classes(int(text))
    path = Path(text)
    try:
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {text} is neither a number of classes nor a file of names ({error})") from None
    if path.suffix == ".json":
        return _coco_classes(path, content)
    names = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes {path} must have one name on each line, no two the same")
    return Classes(names, tuple(range(1, len(names) + 1)))


def _coco_classes(path: Path, content: str) -> Classes:
    """In the order of their ids, as datasets are read."""
    try:
        listed = list_of(check_object(parse_json(content)), "categories")
        categories = sorted(check_category(entry) for entry in listed)
    except ValueError as error:
        raise UserError(
            f"--classes {path} is not COCO's JSON with a list 'categories' of ids and names ({error})"
        ) from None
    if len({id_ for id_, _ in categories}) < len(categories):
        raise UserError(f"--classes {path} has a category id twice; make the ids unique")
    if not categories:
        raise UserError(f"--classes {path} lists no categories")
    return Classes(tuple(name for _, name in categories), tuple(number for number, _ in categories))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what a user is told of its tensors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _published_keypoints(model: MaskRCNNConfig) -> tuple[str, ...]:
    """The names of the keypoints of published weights, which are COCO's; none where there are more or fewer."""
    published = model.keypoint_head is not None and model.keypoint_head.num_keypoints == len(COCO_KEYPOINTS)
    return COCO_KEYPOINTS if published else ()


def _published(model: MaskRCNNConfig, source: Source) -> ExperimentConfig:
    """The experiment that the weights were made with, as far as data goes: COCO, at 800 pixels or on squares."""
    coco = CocoConfig(root="data/coco", train_split="train2017", val_split="val2017")
    if model.keypoint_head is not None:
        coco = replace(coco, annotation_file="person_keypoints_{split}.json")
    if any(head.needs == "semantic" for head in model.heads):
        coco = replace(coco, panoptic_file="panoptic_{split}.json")
    square = square_side(model)
    data = DataConfig(
        source=coco,
        short_side_eval=square or 800,
        max_side=square or 1333,
        canvas=(square, square) if square else (800, 1344),
        smaller_canvases=() if square else ((704, 960), (768, 1024), (800, 1152)),
        smaller_canvases_eval=() if square else ((800, 896), (800, 1088), (800, 1216)),
        resize="detectron2" if source == "detectron2" else "torchvision",
        min_keypoints=0 if model.keypoint_head is None else 1,
    )
    return ExperimentConfig(model=model, data=data)


def _told(
    path: Path, out: Path, config: ExperimentConfig, named: Classes, report: Report, notes: Sequence[str]
) -> list[str]:
    first, *more = report.lines()
    shown = ", ".join(named.names[:4]) + (", ..." if len(named.names) > 4 else "")
    commands = f"mask-rcnn eval --workdir {out}, and for mask-rcnn train --config {out} --workdir ANOTHER"
    if isinstance(config.model.rpn, GivenProposalsConfig):
        proposals = "--set data.proposals=ProposalFilesConfig data.proposals.train=FILE data.proposals.val=FILE"
        commands += f"; both need files of proposals: {proposals}"
    return [
        f"{path}: {first}",
        *more,
        f"{describe(config.model)}: {shown}",
        *notes,
        f"{out} is ready for {commands}",
    ]
