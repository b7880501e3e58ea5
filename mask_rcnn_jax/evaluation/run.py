"""Evaluates a model on a dataset: what training does now and then, and `mask-rcnn eval` once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import CocoDataset, DataConfig, Record, eval_batches, leave_out
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation.coco import EvaluationConfig
from mask_rcnn_jax.evaluation.panoptic import PanopticCounter
from mask_rcnn_jax.evaluation.score import gather_results, score_kinds
from mask_rcnn_jax.inference import predict
from mask_rcnn_jax.models import MaskRCNNConfig, SemanticHeadConfig, Variables


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics and detections of a model on a dataset."""

    metrics: dict[str, float]  # by name, see `evaluation.coco`, `evaluation.lvis` and `evaluation.panoptic`
    results: list[dict[str, Any]]  # the detections, as in a COCO results file
    dataset: CocoDataset  # without the images that turned out unreadable
    left_out: tuple[str, ...] = ()  # a sentence for those, if there are any


def evaluate_model(
    model: MaskRCNNConfig,
    data: DataConfig,
    evaluation: EvaluationConfig,
    variables: Variables,
    dataset: CocoDataset,
    class_names: Sequence[str] | None = None,
) -> EvaluationResult:
    """Detects in every image of `dataset` and compares with its annotations; several processes share the images.

    `class_names` are the model's, where they may be more than the dataset's or in another order: classes are then the
    same by name, and detections of others are left out. Images that turn out unreadable, or whose labels of pixels do,
    are left out with their annotations where `data.broken_images` is "skip": they count neither for the model nor
    against it. Where both have
    kinds of stuff, panoptic quality is among the metrics. Raises UserError when the model lacks some of the dataset's
    classes, or has another number of kinds of stuff, or an image or its labels cannot be used, or none can.
    """
    class_names = dataset.class_names if class_names is None else class_names
    if len(class_names) != model.num_classes:
        raise UserError(
            f"{dataset.annotation_file} has {len(dataset.categories)} categories but the model {model.num_classes};"
            " evaluate on annotations with the categories the model was trained on"
        )
    class_of = _same_by_name(class_names, dataset)
    counter = _panoptic_counter(model, dataset)
    # Each process detects on its own devices in its share of the images.
    records = dataset.records[jax.process_index() :: jax.process_count()]
    devices = jax.local_device_count()
    broken: dict[int, str] = {}

    def note(record: Record, error: UserError) -> None:
        broken[record.image_id] = str(error)

    batches = eval_batches(
        replace(dataset, records=records),
        data,
        evaluation.images_per_device * devices,
        note,
        multiple=devices,
    )
    try:
        predictions = predict(model, variables, batches, class_names=dataset.class_names, class_of=class_of)
        if counter is not None:
            predictions = counter.counted(predictions, note if data.broken_images == "skip" else None)
        results, kinds = gather_results(dataset, predictions)
    finally:
        batches.close()
    readable, left_out = _without_broken(dataset, broken)
    metrics = score_kinds(readable, results, kinds, evaluation) | ({} if counter is None else counter.metrics())
    return EvaluationResult(metrics, results, readable, left_out)


def _panoptic_counter(model: MaskRCNNConfig, dataset: CocoDataset) -> PanopticCounter | None:
    """Return what counts pixels and segments, where both the model and the dataset have them."""
    heads = [head for head in model.heads if isinstance(head, SemanticHeadConfig)]
    if not heads or not dataset.stuff_names:
        return None
    if heads[0].num_kinds != len(dataset.stuff_names) + 1:
        raise UserError(
            f"{dataset.annotation_file} comes with {len(dataset.stuff_names)} kinds of stuff but the model knows"
            f" {heads[0].num_kinds - 1}; evaluate on labels with the kinds the model was trained on"
        )
    return PanopticCounter(dataset, heads[0].combine)


def check_stuff(stuff_names: Sequence[str], model: MaskRCNNConfig, dataset: CocoDataset) -> None:
    """Raise UserError where the kinds of stuff that a model was trained on, none where they are not known, are others
    than as many of the dataset's, or in another order: unlike classes they are taken by number.
    """
    has_head = any(isinstance(head, SemanticHeadConfig) for head in model.heads)
    as_many = len(stuff_names) == len(dataset.stuff_names)  # else `evaluate_model` says so
    if not (has_head and as_many) or tuple(stuff_names) == dataset.stuff_names:
        return
    raise UserError(
        f"{dataset.annotation_file} comes with the kinds of stuff {_named(dataset.stuff_names)} but the model was"
        f" trained on {_named(stuff_names)}; evaluate on labels with the model's kinds, in the order of their ids"
    )


def _without_broken(dataset: CocoDataset, broken: Mapping[int, str]) -> tuple[CocoDataset, tuple[str, ...]]:
    """The dataset without the images, by id, that any process could not read, and what to say of these."""
    problems = {image_id: problem for part in processes.gather(broken) for image_id, problem in part.items()}
    if not problems:
        return dataset, ()
    ids = {record.image_id: index for index, record in enumerate(dataset.records)}
    first = min(problems, key=ids.__getitem__)
    if len(problems) == len(ids):
        raise UserError(f"{dataset.annotation_file}: none of its images can be read, e.g. {problems[first]}")
    line = f"{dataset.annotation_file}: {len(problems)} images turned out unreadable and were left out with their"
    return leave_out(dataset, {ids[image_id]: problem for image_id, problem in problems.items()}), (
        f"{line} annotations, e.g. {problems[first]}",
    )


def _same_by_name(class_names: Sequence[str], dataset: CocoDataset) -> np.ndarray:
    """The dataset's class of each of the model's, -1 where it has none of that name."""
    if tuple(class_names) == dataset.class_names:
        return np.arange(len(class_names))  # names may then even occur twice
    lacking = [name for name in dataset.class_names if name not in class_names]
    if lacking:
        raise UserError(
            f"{dataset.annotation_file} has the categories {_named(dataset.class_names)} but the model was trained on"
            f" {_named(class_names)}, without {_named(lacking)}; evaluate on annotations with the model's categories"
        )
    return np.array([dataset.class_names.index(name) if name in dataset.class_names else -1 for name in class_names])


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
