"""Tracking: detections of successive frames that are one instance.

Shape letters: `n` detections of a frame, `t` tracks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask

from mask_rcnn_jax.extras import require
from mask_rcnn_jax.inference.results.detections import Detections

_STEADINESS = 0.5  # weight of a track's motion so far against that of its last frame


@dataclass(frozen=True)
class TrackingConfig:
    iou: float = 0.3  # least overlap of a detection with where its track is expected
    patience: int = 15  # frames without a detection after which a track ends


@dataclass
class _Track:
    number: int
    label: int
    box: Float[np.ndarray, "4"]
    motion: Float[np.ndarray, "2"]  # of the centre, pixels a frame
    missed: int = 0  # frames since its last detection

    def expected(self) -> Float[np.ndarray, "4"]:
        return self.box + np.tile(self.motion, 2) * (self.missed + 1)

    def move(self, box: Float[np.ndarray, "4"]) -> None:
        step = (box.reshape(2, 2).mean(axis=0) - self.box.reshape(2, 2).mean(axis=0)) / self.missed
        self.motion = _STEADINESS * self.motion + (1 - _STEADINESS) * step
        self.box, self.missed = box, 0


class Tracker:
    """Numbers instances through a video, by the overlap of their boxes with where they are expected.

    A track is expected to move on as it did. Detections and tracks of one class are assigned to each other so that the
    sum of their overlaps is the largest; a detection without a track starts one. Numbers count from 1 and are never
    used again.
    """

    def __init__(self, config: TrackingConfig = TrackingConfig()):
        self.config = config
        self._tracks: list[_Track] = []
        self._started = 0

    def update(self, found: Detections) -> Int[np.ndarray, " n"]:
        """The track of each detection of the next frame, all different."""
        require("tiles", "a track")
        from scipy.optimize import linear_sum_assignment

        numbers = np.zeros(len(found), np.int64)
        boxes = found.boxes.astype(np.float64)
        overlap = self._overlap(boxes, found.classes)
        for track in self._tracks:
            track.missed += 1
        for row, column in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
            if overlap[row, column] > 0:
                track = self._tracks[column]
                track.move(boxes[row])
                numbers[row] = track.number
        for row in np.flatnonzero(numbers == 0):
            self._started += 1
            numbers[row] = self._started
            self._tracks.append(_Track(self._started, int(found.classes[row]), boxes[row], np.zeros(2)))
        self._tracks = [track for track in self._tracks if track.missed <= self.config.patience]
        return numbers

    def _overlap(self, boxes: Float[np.ndarray, "n 4"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n t"]:
        """IoU of boxes and expected boxes, 0 below the threshold and between classes."""
        if not len(boxes) or not self._tracks:
            return np.zeros((len(boxes), len(self._tracks)))
        expected = np.stack([track.expected() for track in self._tracks])
        iou = np.asarray(coco_mask.iou(_corner_and_sides(boxes), _corner_and_sides(expected), [0] * len(expected)))
        same = classes[:, None] == np.array([track.label for track in self._tracks])
        return np.where(same & (iou >= self.config.iou), iou, 0.0)


def _corner_and_sides(boxes: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, "k 4"]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
