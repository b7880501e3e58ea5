"""From a step of the plan to the arrays of its batch.

`B` images on a canvas of `H W` pixels (one a batch), `n` records, `S` short sides of which one is drawn for a record,
`G` ground-truth slots, `C` side of a mask grid, `J` keypoints of an instance, `P` slots of proposals. Padding rows and
slots hold zeros and are marked by `valid`; labels of padding are `IGNORED`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from mask_rcnn_jax.data.augment.reading import read_resized, training_sample
from mask_rcnn_jax.data.augment.sample import Sample
from mask_rcnn_jax.data.augment.steps import resized_proposals
from mask_rcnn_jax.data.batching.canvases import numbered_canvases
from mask_rcnn_jax.data.config import Canvas, DataConfig
from mask_rcnn_jax.data.records import BoxProposals, Record
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.structures import IGNORED, Batch, EvalBatch, GroundTruth, Proposals, TrainBatch

OnBroken = Callable[[Record, UserError], None]

_BYTES_OF_PROPOSAL = 5 * 4 + 1  # a box and a score in float32, and whether there is one
_REPLACEMENTS = 20  # images that are tried in the place of one that cannot be read


def bytes_of_row(config: DataConfig, labelled: bool = False) -> int:
    """Count the bytes of an image, its masks, its proposals and, if `labelled`, its labels in a training batch."""
    pixels, cells = config.canvas[0] * config.canvas[1], config.max_instances * config.mask_crop**2
    proposals = 0 if config.proposals is None else config.proposals.slots * _BYTES_OF_PROPOSAL
    return 3 * pixels * np.dtype(_pixel_type(config)).itemsize + cells + proposals + pixels * labelled


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """Called with a step, loads this process's `rows` of its batch."""

    records: Sequence[Record]
    canvases: Int[np.ndarray, "n S"]  # of each record at each short side, as `canvas_numbers` counts them
    keypoint_names: Sequence[str]
    config: DataConfig
    plan: Int[np.ndarray, "num_steps batch_size"]  # indices of `canvases`, flattened
    seed: int
    rows: range

    def __call__(self, step: int) -> TrainBatch:
        size, (index, column) = len(self.rows), self._choice(step, 0)
        first, canvas = self.records[index], numbered_canvases(self.config)[self.canvases[index, column]]
        images, sizes, ids = _blank_images(canvas, self.config, size)
        config = replace(self.config, canvas=(min(canvas), max(canvas)))
        dropped, replaced = np.zeros(size, np.int32), np.zeros(size, np.int32)
        truth, proposals = self._no_instances(first, images.shape[:3]), _no_proposals(first, self.config, size)
        for row, global_row in enumerate(self.rows):
            record, sample, replaced[row] = self._sample(step, global_row, config)
            ids[row], dropped[row] = record.image_id, sample.dropped
            _place(sample.image, images, sizes, row)
            used = slice(len(sample.boxes))
            truth.boxes[row, used] = sample.boxes
            truth.classes[row, used] = sample.classes
            truth.masks[row, used] = sample.grids(self.config.mask_crop)
            truth.valid[row, used] = True
            if self.keypoint_names:
                truth.keypoints[row, used] = sample.keypoints
            _place_proposals(sample.proposals, proposals, row)
            if sample.semantic is not None:
                height, width = sample.semantic.shape
                truth.semantic[row, :height, :width] = sample.semantic
        index = np.array(self.rows, np.int32) + np.int32(step * self.plan.shape[1])
        inputs: Any = images, sizes, truth, index, proposals
        return TrainBatch(Batch(*inputs), ids, dropped, replaced)

    def _no_instances(self, first: Record, shape: tuple[int, ...]) -> Any:
        """Empty slots for `shape`, (images, height, width), and ignored pixels where images have labels, as `first`."""
        size, labelled = shape[0], first.semantic is not None
        slots, crop, keypoints = self.config.max_instances, self.config.mask_crop, len(self.keypoint_names)
        arrays: dict[str, Any] = {
            "boxes": np.zeros((size, slots, 4), np.float32),
            "classes": np.zeros((size, slots), np.int32),
            "masks": np.zeros((size, slots, crop, crop), np.uint8),
            "valid": np.zeros((size, slots), bool),
            "keypoints": np.zeros((size, slots, keypoints, 3), np.float32) if keypoints else None,
            "semantic": np.full(shape, IGNORED, np.uint8) if labelled else None,
        }
        return GroundTruth(**arrays)

    def _choice(self, step: int, row: int) -> tuple[int, int]:
        """The indices of the record and the short side of a row of the global batch."""
        return divmod(int(self.plan[step, row]), self.canvases.shape[1])

    def _sample(self, step: int, row: int, config: DataConfig) -> tuple[Record, Sample, int]:
        """The record and sample of a row of the global batch, and how many images could not be read before."""
        index, column = self._choice(step, row)
        rng, attempt = np.random.default_rng([self.seed, step, row]), 0
        # Where the canvas depends on it, the plan has drawn it.
        short_side = config.short_side[column] if self.canvases.shape[1] > 1 else None
        while True:
            record = self.records[index]
            try:
                sample = training_sample(record, config, rng, self.keypoint_names, self.records, short_side)
                return record, sample, attempt
            except UserError:
                if config.broken_images == "fail" or attempt == _REPLACEMENTS:
                    raise
            attempt += 1
            rng = np.random.default_rng([self.seed, step, row, attempt])
            alike = self.canvases[:, column] == self.canvases[index, column]
            index = int(rng.choice(np.flatnonzero(alike)))


@dataclass(frozen=True, eq=False)
class EvalLoader:
    """Called with a step, loads the images of its batch."""

    records: Sequence[Record]
    config: DataConfig
    plan: Sequence[tuple[int, Int[np.ndarray, " m"], int]]  # of each step: canvas, indices of records, and rows
    on_broken: OnBroken | None

    def __call__(self, step: int) -> EvalBatch:
        number, indices, size = self.plan[step]
        chosen = [self.records[index] for index in indices]
        images, sizes, ids = _blank_images(numbered_canvases(self.config)[number], self.config, size)
        proposals = _no_proposals(chosen[0], self.config, size)
        valid = np.arange(size) < len(chosen)
        batch = EvalBatch(images, sizes, np.zeros((size, 2), np.int32), ids, valid, proposals)
        for row, record in enumerate(chosen):
            try:
                image = read_resized(record, self.config.short_side_eval, self.config)
            except UserError as error:
                if self.config.broken_images == "fail":
                    raise
                batch.valid[row] = False
                if self.on_broken is not None:
                    self.on_broken(record, error)
                continue
            _place(image, images, sizes, row)
            height, width = image.shape[:2]
            _place_proposals(resized_proposals(record, (height, width), (0, 0, width, height)), proposals, row)
            batch.image_ids[row] = record.image_id
            batch.original_sizes[row] = record.height, record.width
        return batch


def _blank_images(canvas: Canvas, config: DataConfig, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, their sizes and their ids, all zeros."""
    images = np.zeros((size, *canvas, 3), _pixel_type(config))
    return images, np.zeros((size, 2), np.int32), np.zeros(size, np.int64)


def _pixel_type(config: DataConfig) -> type[np.uint8] | type[np.float32]:
    return np.uint8 if config.resize == "detectron2" else np.float32


def _place(
    image: Num[np.ndarray, "h w 3"], images: Num[np.ndarray, "B H W 3"], sizes: Int[np.ndarray, "B 2"], row: int
) -> None:
    height, width = image.shape[:2]
    images[row, :height, :width] = image
    sizes[row] = height, width


def _no_proposals(record: Record, config: DataConfig, size: int) -> Any:
    """Slots for the proposals of `size` images, all empty; None where images have none, as `record` shows."""
    if record.proposals is None:
        return None
    if config.proposals is None:
        raise UserError("the dataset has proposals and data.proposals is none, which says how many slots there are")
    slots = config.proposals.slots
    rows = (size, slots)
    arrays: Any = np.zeros((*rows, 4), np.float32), np.zeros(rows, np.float32), np.zeros(rows, bool)
    return Proposals(*arrays)


def _place_proposals(found: BoxProposals | None, proposals: Any, row: int) -> None:
    if found is None or proposals is None:
        return
    count = min(len(found.boxes), proposals.valid.shape[1])  # the best come first
    proposals.boxes[row, :count] = found.boxes[:count]
    proposals.logits[row, :count] = found.scores[:count]
    proposals.valid[row, :count] = True
