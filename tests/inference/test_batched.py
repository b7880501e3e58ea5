"""The predictor around a detector that finds what the images say, so that the answers are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.inference import predict
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.structures import PaddedDetections

CONFIG, VARIABLES = MaskRCNNConfig(), Variables({"scale": np.float32(0.01)}, {})


def corner_detector(config, variables, images, image_sizes) -> PaddedDetections:
    """Finds as many instances as the first pixel says, in the lower right quarter; scores tell images apart."""
    count, size = images[:, 0, 0, 0].astype(jnp.int32), image_sizes.astype(jnp.float32)
    sides = size[:, ::-1]
    box = jnp.concatenate([sides / 2, sides], axis=1)
    slots = jnp.arange(3)
    valid = slots < count[:, None]
    scores = variables.params["scale"] * images[:, 0, 1, 0].astype(jnp.float32)
    return PaddedDetections(
        boxes=jnp.where(valid[..., None], box[:, None], 0.0),
        scores=jnp.where(valid, scores[:, None] - 0.01 * slots, 0.0),
        classes=jnp.where(valid, slots, 0),
        masks=jnp.where(valid[..., None, None], jnp.ones((4, 4)), 0.0),
        valid=valid,
    )


def batch_of(counts: list[int], valid: list[bool] | None = None, first_id: int = 0) -> dict[str, np.ndarray]:
    size = len(counts)
    images = np.zeros((size, 16, 32, 3), np.uint8)
    images[:, 0, 0, 0] = counts
    images[:, 0, 1, 0] = 50 + np.arange(size)
    return {
        "images": images,
        "image_sizes": np.full((size, 2), [10, 20], np.int32),
        "original_sizes": np.full((size, 2), [33, 50], np.int32),
        "image_ids": np.arange(first_id, first_id + size, dtype=np.int64),
        "valid": np.array(valid or [True] * size),
    }


def test_boxes_come_back_in_original_pixels_without_padding() -> None:
    found = list(predict(CONFIG, VARIABLES, [batch_of([2, 0, 1])], corner_detector))
    assert [d.image_id for d in found] == [0, 1, 2]
    assert [len(d.boxes) for d in found] == [2, 0, 1]
    np.testing.assert_allclose(found[0].boxes, [[25, 16.5, 50, 33]] * 2, rtol=1e-6)
    np.testing.assert_allclose(found[0].scores, [0.50, 0.49], rtol=1e-6)
    np.testing.assert_array_equal(found[0].classes, [0, 1])
    assert (found[0].height, found[0].width) == (33, 50)
    assert found[0].masks is not None
    assert found[0].masks.shape == (2, 4, 4)


def test_padded_rows_are_left_out_and_batches_stay_in_order() -> None:
    batches = [batch_of([1, 2]), batch_of([3, 1], [True, False], first_id=2)]
    found = list(predict(CONFIG, VARIABLES, batches, corner_detector))
    assert [(d.image_id, len(d.boxes)) for d in found] == [(0, 1), (1, 2), (2, 3)]


def test_no_batches() -> None:
    assert list(predict(CONFIG, VARIABLES, [], corner_detector)) == []


def test_sharing_a_batch_among_devices_changes_nothing() -> None:
    devices = jax.device_count()
    if devices == 1:
        pytest.skip("needs several devices")
    counts = [i % 4 for i in range(2 * devices)]
    shared = list(predict(CONFIG, VARIABLES, [batch_of(counts)], corner_detector))
    # A batch of one more row cannot be shared equally: one device takes it.
    alone = list(predict(CONFIG, VARIABLES, [batch_of([*counts, 0])], corner_detector))
    for a, b in zip(shared, alone[:-1], strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_keypoints_come_back_in_original_pixels_with_their_scores() -> None:
    def at_the_corner_of_the_box(*arguments):
        found = corner_detector(*arguments)
        corner = jnp.concatenate([found.boxes[..., None, :2], found.scores[..., None, None]], axis=-1)
        outside = corner + jnp.array([40.0, 0.0, 0.0])  # boxes are clipped to the image, keypoints are not
        return replace(found, keypoints=jnp.concatenate([corner, outside], axis=-2))

    found = list(predict(CONFIG, VARIABLES, [batch_of([2, 0])], at_the_corner_of_the_box))
    assert found[0].keypoints is not None
    assert found[1].keypoints is not None
    np.testing.assert_allclose(found[0].keypoints[:, 0, :2], found[0].boxes[:, :2], rtol=1e-6)
    np.testing.assert_allclose(found[0].keypoints[:, 1, 0], found[0].boxes[:, 0] + 40 * 2.5, rtol=1e-6)
    np.testing.assert_allclose(found[0].keypoints[..., 2], found[0].scores[:, None].repeat(2, axis=1), rtol=1e-6)
    assert found[1].keypoints.shape == (0, 2, 3)
    assert next(predict(CONFIG, VARIABLES, [batch_of([1])], corner_detector)).keypoints is None


def test_a_model_without_masks() -> None:
    def boxes_only(*arguments):
        found = corner_detector(*arguments)
        return PaddedDetections(found.boxes, found.scores, found.classes, None, found.valid)

    assert next(predict(CONFIG, VARIABLES, [batch_of([2])], boxes_only)).masks is None
