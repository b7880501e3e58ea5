"""Kinds of stuff at the size of the original image, and the map of segments, beside plain code."""

import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections, Segment, Stuff, panoptic_map
from mask_rcnn_jax.inference.results.panoptic import stuff_kinds, stuff_of, to_coco_panoptic
from mask_rcnn_jax.models import MaskRCNNConfig, PanopticConfig, architectures
from mask_rcnn_jax.rle import as_text, encode_bitmap

SMALL = PanopticConfig(min_stuff_area=6)


@pytest.mark.parametrize(
    ("padded", "size", "original"),
    [((32, 64), (30, 41), (77, 95)), ((32, 64), (32, 64), (16, 40)), ((32, 32), (28, 32), (300, 290))],
)
def test_kinds_are_those_of_logits_that_torch_interpolates_twice(padded, size, original) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(padded[0] // 4, padded[1] // 4, 5)).astype(np.float32)
    tensor = torch.tensor(logits.transpose(2, 0, 1)[None])
    wide = torch.nn.functional.interpolate(tensor, scale_factor=4, mode="bilinear", align_corners=False)
    cut = wide[:, :, : size[0], : size[1]]
    expected = torch.nn.functional.interpolate(cut, size=original, mode="bilinear", align_corners=False)
    expected = expected[0].numpy()
    found = stuff_kinds(logits, padded, size, original)
    assert found.shape == original
    # Where two kinds are as good but for rounding, either may be taken.
    taken = np.take_along_axis(expected, found[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(taken, expected.max(axis=0), atol=1e-5)


def found_in(masks: np.ndarray, scores: list[float], classes: list[int], stuff: np.ndarray | None) -> Detections:
    return Detections(
        *masks.shape[1:],
        boxes=np.zeros((len(masks), 4), np.float32),
        scores=np.array(scores, np.float32),
        classes=np.array(classes, np.int32),
        class_names=("a", "b"),
        rles=tuple(as_text(encode_bitmap(mask)) for mask in masks),
        stuff=stuff,
    )


def bars(*spans: tuple[int, int]) -> np.ndarray:
    """Masks of an image of 2 x 12 that cover some of its columns."""
    columns = np.arange(12)
    return np.stack([np.tile((columns >= low) & (columns < high), (2, 1)) for low, high in spans])


def test_better_instances_hide_others_and_stuff_takes_what_is_left() -> None:
    stuff = np.array([[2] * 8 + [1] * 3 + [0]] * 2, np.uint8)
    masks = bars((0, 4), (2, 6), (3, 7), (8, 9), (5, 5))
    scores = [0.7, 0.9, 0.8, 0.4, 0.95]  # hidden by half, which is not too much; whole; too much; too low; empty
    numbers, segments = panoptic_map(found_in(masks, scores, [0, 1, 0, 1, 1], stuff), SMALL)
    np.testing.assert_array_equal(numbers, [[2, 2, 1, 1, 1, 1, 0, 0, 3, 3, 3, 0]] * 2)
    assert [(s.number, s.is_thing, s.kind, s.area, s.instance) for s in segments] == [
        (1, True, 1, 8, 1),
        (2, True, 0, 4, 0),
        (3, False, 1, 6, None),
    ]
    assert [segment.score for segment in segments] == pytest.approx([0.9, 0.7, None])


def test_without_stuff_the_map_is_of_instances_and_without_masks_there_is_none() -> None:
    found = found_in(bars((0, 4)), [0.9], [0], None)
    numbers, (segment,) = panoptic_map(found)
    np.testing.assert_array_equal(numbers, bars((0, 4))[0])
    assert segment == Segment(1, True, 0, 8, pytest.approx(0.9), 0)
    with pytest.raises(UserError, match="a map of segments is made of masks, and the model has none"):
        panoptic_map(Detections(2, 12, found.boxes, found.scores, found.classes, ("a",), None))


def test_numbers_become_colours_and_segments_entries() -> None:
    numbers = np.array([[0, 1, 1], [70_000, 1, 300]])
    segments = [Segment(1, True, 1, 3, 0.5, 0), Segment(300, False, 1, 1), Segment(70_000, False, 2, 1)]
    colours, entries = to_coco_panoptic(numbers, segments, (4, 9), (11, 12))
    np.testing.assert_array_equal(colours.astype(int) @ [1, 256, 65536], numbers)
    assert entries == [
        {"id": 1, "category_id": 9, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0, "score": 0.5},
        {"id": 300, "category_id": 11, "area": 1, "bbox": [2, 1, 1, 1], "iscrowd": 0},
        {"id": 70_000, "category_id": 12, "area": 1, "bbox": [0, 1, 1, 1], "iscrowd": 0},
    ]


def test_kinds_without_names_are_numbered_after_the_things() -> None:
    config = architectures.panoptic_fpn(MaskRCNNConfig(), num_stuff=2)
    assert stuff_of(config, ("sky", "sea"), (5, 6), (1, 2)) == Stuff(("sky", "sea"), (5, 6))
    assert stuff_of(config, (), (), (1, 90)) == Stuff(("stuff 1", "stuff 2"), (91, 92))
    assert stuff_of(MaskRCNNConfig(), (), (), (1,)) == Stuff()
