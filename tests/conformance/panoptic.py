"""Rows of Panoptic FPN's semantic head and map of segments beside Detectron2's recorded outputs."""

import functools
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np

from mask_rcnn_jax import models
from mask_rcnn_jax.inference.batched import by_image
from mask_rcnn_jax.inference.results.panoptic import Segment, _resizing, panoptic_segments, stuff_kinds
from mask_rcnn_jax.models import MaskRCNNConfig, SemanticHeadConfig, Variables
from mask_rcnn_jax.rle import decode_bitmap
from mask_rcnn_jax.structures import EvalBatch, PaddedDetections
from tests.conformance.golden import IMAGES, Golden, nhwc
from tests.conformance.rows import Row, largest_relative, relative

_PIXELS = 1e-3  # that may show something else, of all


def panoptic_rows(golden: Golden) -> Iterator[Row]:
    """The logits, what becomes of them at the original size, and the map of segments, each given the reference's."""
    row = functools.partial(Row, golden.name)
    expected = nhwc(golden["sem_seg_logits"])
    ours = _logits(golden.config, golden.variables, golden.features)
    yield row("semantic head", "logits", relative(ours, expected), 1e-4, "relative")
    resized = [(_every_16th(golden, i), golden[f"sem_seg_{i}"].transpose(1, 2, 0)) for i in IMAGES]
    yield row("stuff", "logits at the original size", largest_relative(resized), 1e-4, "relative")
    kinds = [stuff_kinds(expected[i], *_sizes(golden, i)) for i in IMAGES]
    yield row("stuff", "pixels of another kind", _pixels(golden, kinds), _PIXELS, "of all")
    made = [_segments(golden, i, golden[f"sem_seg_argmax_{i}"]) for i in IMAGES]
    yield from _segment_rows(golden, "map of segments", made)


def end_to_end_rows(golden: Golden, found: PaddedDetections) -> Iterator[Row]:
    """From images to kinds and segments, as they are predicted.

    The reference's own difference between float32 and float64 is the bound where it is larger.
    """
    originals = np.array([golden[f"original_size_{i}"] for i in IMAGES])
    batch = EvalBatch(golden.images, golden.sizes, originals, np.arange(len(IMAGES)), np.ones(len(IMAGES), bool))
    predictions = [found for _, found in by_image(found, batch, golden.config.paste)]
    own = golden.json["own_difference"]
    kinds = [found.stuff for found in predictions]
    bound = max(_PIXELS, 1 - min(own["sem_seg_pixels_equal"]))
    yield Row(golden.name, "end to end", "pixels of another kind of stuff", _pixels(golden, kinds), bound, "of all")
    made = [panoptic_segments(f.stuff, f.scores, f.classes, f.rles, _head(golden).combine) for f in predictions]
    bound = max(_PIXELS, 1 - min(own["panoptic_pixels_equal"]))
    for row in _segment_rows(golden, "end to end", made):
        yield replace(row, bound=bound) if row.unit == "of all" else row


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: MaskRCNNConfig, variables: Variables, features: dict[str, jax.Array]) -> jax.Array:
    return models.networks(config, variables).heads["semantic_head"](features)


def _head(golden: Golden) -> SemanticHeadConfig:
    (head,) = golden.config.heads
    assert isinstance(head, SemanticHeadConfig)
    return head


def _sizes(golden: Golden, image: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of the padded, the resized and the original image."""
    sizes = golden["batch"].shape[2:], golden.sizes[image], golden[f"original_size_{image}"]
    return tuple((int(height), int(width)) for height, width in sizes)


def _every_16th(golden: Golden, image: int) -> np.ndarray:
    logits = nhwc(golden["sem_seg_logits"])[image]
    weights = [_resizing(*sides)[::16] for sides in zip(logits.shape[:2], *_sizes(golden, image), strict=True)]
    return np.einsum("yh,xw,hwk->yxk", *weights, logits)


def _pixels(golden: Golden, kinds: list[np.ndarray]) -> float:
    """The largest share of an image's pixels whose kind is not the reference's."""
    return float(np.max([np.mean(ours != golden[f"sem_seg_argmax_{i}"]) for i, ours in enumerate(kinds)]))


def _segments(golden: Golden, image: int, kinds: np.ndarray) -> tuple[np.ndarray, list[Segment]]:
    scores, classes = golden[f"det_scores_{image}"], golden[f"det_classes_{image}"]
    return panoptic_segments(kinds, scores, classes, tuple(golden.json["masks"][image]), _head(golden).combine)


def _segment_rows(golden: Golden, stage: str, made: list[tuple[np.ndarray, list[Segment]]]) -> Iterator[Row]:
    """Segments that one program alone has, or has in another place of the list; and pixels of another segment."""
    others, pixels = 0, []
    for (numbers, segments), reference in zip(made, golden.json["panoptic"], strict=True):
        ours = [(segment.number, segment.is_thing, segment.kind) for segment in segments]
        expected = [(each["id"], each["isthing"], each["category_id"]) for each in reference["segments"]]
        others += sum(a != b for a, b in zip(ours, expected, strict=False)) + abs(len(ours) - len(expected))
        of_reference = np.zeros(numbers.shape, int)
        for (number, *_), rle in zip(expected, reference["rle"], strict=True):
            of_reference[decode_bitmap(rle)] = number
        pixels.append(np.mean(numbers != of_reference))
    yield Row(golden.name, stage, "segments that are others", float(others), 0, "segments")
    yield Row(golden.name, stage, "pixels of another segment", float(np.max(pixels)), _PIXELS, "of all")
