"""The data of a run, checked before the first step for everything that can be."""

from collections.abc import Mapping

from mask_rcnn_jax import processes
from mask_rcnn_jax.data import (
    CocoDataset,
    check_segments,
    eval_batches,
    fingerprint,
    load_split,
    trainable_records,
    verify_images,
)
from mask_rcnn_jax.data.augment.keypoint_flips import describe_flips, mirrored
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import keypoint_sigmas
from mask_rcnn_jax.models import GivenProposalsConfig, RPNConfig, SemanticHeadConfig
from mask_rcnn_jax.training.config import ExperimentConfig


def load_datasets(config: ExperimentConfig) -> dict[str, CocoDataset]:
    """The two splits, checked against each other, the model, and the image files."""
    check_proposals(config)
    source = config.data.source
    train_set, val_set = load_split(config.data, source.train_split), load_split(config.data, source.val_split)
    if (train_set.categories, train_set.class_names) != (val_set.categories, val_set.class_names):
        raise UserError(f"{train_set.annotation_file} and {val_set.annotation_file} have different categories")
    stuff, of_val = ((split.stuff_names, split.stuff_categories) for split in (train_set, val_set))
    if train_set.stuff_names and stuff != of_val:
        raise UserError(f"{train_set.annotation_file} and {val_set.annotation_file} have different kinds of stuff")
    if len(train_set.class_names) != config.model.num_classes:
        raise UserError(
            f"{train_set.annotation_file} has {len(train_set.class_names)} categories but model.num_classes is"
            f" {config.model.num_classes}; add --set model.num_classes={len(train_set.class_names)}"
        )
    _check_needs(config, train_set)
    if any(head.needs == "semantic" for head in config.model.heads):
        check_segments(val_set)
    _check_keypoints(config, train_set, val_set)
    train_set, val_set = verify_images(train_set, config.data), verify_images(val_set, config.data)
    trainable_records(train_set, config.data)
    eval_batches(val_set, config.data, 1).close()  # raises where an image cannot fit the canvas
    datasets = {"train": train_set, "val": val_set}
    check_alike(datasets)
    return datasets


def check_proposals(config: ExperimentConfig) -> None:
    """Raise `UserError` where the model is given its proposals and the data have none, or the other way round."""
    if isinstance(config.model.rpn, GivenProposalsConfig) and config.data.proposals is None:
        raise UserError(
            "model.rpn is GivenProposalsConfig, and the data have no proposals; name files of them with --set"
            " data.proposals=ProposalFilesConfig data.proposals.train=FILE data.proposals.val=FILE, or set model.rpn to"
            " RPNConfig"
        )
    if isinstance(config.model.rpn, RPNConfig) and config.data.proposals is not None:
        raise UserError(
            "data.proposals names files of proposals, and model.rpn is RPNConfig, which makes its own; set"
            " data.proposals to none, or model.rpn to GivenProposalsConfig"
        )


def check_alike(datasets: Mapping[str, CocoDataset]) -> None:
    """Raise `UserError` in all processes where one of them has read other images or annotations than the first.

    Each takes its share of what it has read itself: of other lists, images would be left out and others counted twice.
    """
    if processes.index_and_count()[1] == 1:
        return
    first, *others = processes.gather({split: fingerprint(dataset) for split, dataset in datasets.items()})
    for index, found in enumerate(others, 1):
        for split in first:
            if found[split] != first[split]:
                raise UserError(
                    f"process {index} has read other images or annotations of {datasets[split].annotation_file} than"
                    " the first process; give all hosts the same data"
                )


def _check_needs(config: ExperimentConfig, train_set: CocoDataset) -> None:
    learning = [name for name, head in config.model.all_heads.items() if head.needs == "masks"]
    if train_set.boxes_only and learning:
        without = "model.mask_head to none" if learning[0] == "mask_head" else f"take {learning[0]} out of model.heads"
        raise UserError(
            f"{train_set.annotation_file} is read without segmentations; set data.source.boxes_only to false to train"
            f" a model with masks, or {without}"
        )
    for head in config.model.heads:
        if head.needs == "keypoints" and not train_set.keypoint_names:
            raise UserError(
                f"{train_set.annotation_file} names no keypoints, from which {head.name} learns; name them in its"
                f" category, or take {head.name} out of model.heads"
            )
        if head.needs == "semantic" and not train_set.stuff_names:
            raise UserError(
                f"{train_set.annotation_file} comes without labels of pixels, from which {head.name} learns; name them"
                " by data.source.panoptic_file, or have synthetic shapes with them by data.source.stuff=true, or take"
                f" {head.name} out of model.heads"
            )
        if isinstance(head, SemanticHeadConfig) and head.num_kinds != len(train_set.stuff_names) + 1:
            key, found = f"model.heads[{config.model.heads.index(head)}].num_kinds", len(train_set.stuff_names) + 1
            raise UserError(
                f"{train_set.annotation_file} comes with {found - 1} kinds of stuff but {key} is {head.num_kinds}; add"
                f" --set {key}={found}"
            )


def _check_keypoints(config: ExperimentConfig, train_set: CocoDataset, val_set: CocoDataset) -> None:
    mirrored(train_set.keypoint_names, config.data.keypoint_flips)  # raises where a pair names no keypoint
    if config.model.keypoint_head is None:
        return
    if train_set.keypoint_names != val_set.keypoint_names:
        raise UserError(f"{train_set.annotation_file} and {val_set.annotation_file} have different keypoints")
    found, expected = len(train_set.keypoint_names), config.model.keypoint_head.num_keypoints
    if found != expected:
        raise UserError(
            f"{train_set.annotation_file} names {found} keypoints but model.keypoint_head.num_keypoints is {expected};"
            " name them in its category, or set the number"
        )
    keypoint_sigmas(val_set, config.evaluation)  # raises where they are needed and not known


def describe(dataset: CocoDataset) -> str:
    """Describe what was read and what was left out, in a few lines."""
    instances = sum(len(record.boxes) for record in dataset.records)
    count = f"{len(dataset.records)} images, {instances} instances, {len(dataset.class_names)} classes"
    proposals = [len(record.proposals.scores) for record in dataset.records if record.proposals is not None]
    if proposals:
        count += f", {sum(proposals)} proposals"
    if dataset.stuff_names:
        count += f", {len(dataset.stuff_names)} kinds of stuff"
    return "\n".join([f"{dataset.annotation_file}: {count}", *dataset.describe_problems()])


def describe_keypoints(dataset: CocoDataset, config: ExperimentConfig) -> list[str]:
    """Say which keypoints change places when an image is flipped, for a model that finds them."""
    if config.model.keypoint_head is None:
        return []
    return describe_flips(dataset.keypoint_names, config.data.keypoint_flips)
