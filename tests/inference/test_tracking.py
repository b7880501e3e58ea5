"""Tracks of boxes whose identity is known."""

import numpy as np
import pytest

from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.inference.tracking import Tracker, TrackingConfig


def frame(boxes: list[tuple[float, float, float, float]], classes: list[int] | None = None) -> Detections:
    return Detections(
        height=400,
        width=400,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.full(len(boxes), 0.9, np.float32),
        classes=np.array(classes or [0] * len(boxes), np.int32),
        class_names=("a", "b"),
        rles=None,
    )


def square(x: float, y: float, side: float = 20) -> tuple[float, float, float, float]:
    return (x, y, x + side, y + side)


@pytest.mark.parametrize("seed", range(5))
def test_moving_instances_keep_their_numbers_whatever_their_order(seed):
    """Eight squares in straight lines that pass each other, each detected with noise and sometimes missed."""
    rng = np.random.default_rng(seed)
    count, tracker, number_of = 8, Tracker(), {}
    start = np.stack([np.full(count, 30.0), 40 * np.arange(count) + 20], axis=1)
    speed = rng.uniform(3, 6, (count, 2)) * [1, 0.2]
    for step in range(40):
        shown = np.flatnonzero((rng.random(count) > 0.15) | (step == 0))
        rng.shuffle(shown)
        places = start[shown] + step * speed[shown] + rng.normal(0, 0.5, (len(shown), 2))
        numbers = tracker.update(frame([square(*place, 24) for place in places.tolist()]))
        assert len({*numbers.tolist()}) == len(shown)
        for i, number in zip(shown.tolist(), numbers.tolist(), strict=True):
            assert number_of.setdefault(i, number) == number
    assert sorted(number_of.values()) == list(range(1, count + 1))


def test_a_fast_instance_is_followed_by_its_motion():
    tracker = Tracker()
    places = [0, 8, 20, 36, 55, 75, 95, 115, 135]  # at the end it leaves its place from frame to frame
    numbers = [tracker.update(frame([square(x, 50)])).tolist() for x in places]
    assert numbers == [[1]] * len(places)
    jumps = Tracker()
    assert [jumps.update(frame([square(x, 50)])).tolist() for x in (0, 40)] == [[1], [2]]


def test_the_best_assignment_and_not_the_first():
    """Greedily the first detection would take the track that is the other's only one."""
    tracker = Tracker()
    assert tracker.update(frame([square(0, 0), square(14, 0)])).tolist() == [1, 2]
    assert tracker.update(frame([square(8, 0), square(22, 0)])).tolist() == [1, 2]


def test_classes_are_not_mixed():
    tracker = Tracker()
    assert tracker.update(frame([square(0, 0), square(1, 1)], [0, 1])).tolist() == [1, 2]
    assert tracker.update(frame([square(1, 1), square(0, 0)], [0, 1])).tolist() == [1, 2]
    assert tracker.update(frame([square(0, 0)], [1])).tolist() == [2]


def test_a_track_ends_and_its_number_is_not_used_again():
    tracker, empty = Tracker(TrackingConfig(patience=3)), frame([])
    assert tracker.update(frame([square(0, 0)])).tolist() == [1]
    assert [len(tracker.update(empty)) for _ in range(3)] == [0, 0, 0]
    assert tracker.update(frame([square(0, 0)])).tolist() == [1]
    for _ in range(4):
        tracker.update(empty)
    assert tracker.update(frame([square(0, 0)])).tolist() == [2]
